//! vfkit's requests: `GET` and `POST /vm/state`.

use std::path::PathBuf;
use std::time::Duration;

use hyper::{Method, StatusCode};
use serde_json::Value;

use crate::http::{self, Answer, HttpError};

/// How long vfkit may take to answer. It answers after the framework has done what was asked for,
/// which for a pause takes milliseconds.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RestError {
    /// No answer in HTTP.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// No answer in time.
    #[error("it did not answer within {ANSWER_LIMIT:?}")]
    TooLate,
    /// An answer that vfkit does not give.
    #[error("it gave the answer {status} {text:?}, which is none of vfkit's")]
    Nonsense {
        /// The status.
        status: StatusCode,
        /// The start of the answer.
        text: String,
    },
    /// It says that it cannot.
    #[error("it refused: {0}")]
    Refused(String),
}

/// What is asked of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Hold the CPUs.
    Pause,
    /// Let them go on.
    Resume,
    /// Press the power button.
    Stop,
}

impl Change {
    fn name(self) -> &'static str {
        match self {
            Self::Pause => "Pause",
            Self::Resume => "Resume",
            Self::Stop => "Stop",
        }
    }
}

/// What state a VM is in, as the framework names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MachineState {
    /// Its CPUs run.
    Running,
    /// They are held.
    Paused,
    /// It failed.
    Error,
    /// On its way between two others, or one that this version does not know.
    Other(String),
}

impl MachineState {
    fn from_name(name: &str) -> Self {
        match name.strip_prefix("VirtualMachineState").unwrap_or(name) {
            "Running" => Self::Running,
            "Paused" => Self::Paused,
            "Error" => Self::Error,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// Where vfkit listens for requests.
#[derive(Clone, Debug)]
pub(crate) struct RestClient {
    socket: PathBuf,
}

impl RestClient {
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Asks for the state.
    pub(crate) async fn state(&self) -> Result<MachineState, RestError> {
        let answer = self.request(Method::GET, None).await?;
        let parsed: Option<Value> = serde_json::from_slice(&answer.body).ok();
        let name = parsed.as_ref().and_then(|value| value["state"].as_str());
        match name {
            Some(name) if answer.status == StatusCode::OK => Ok(MachineState::from_name(name)),
            _ => Err(nonsense(&answer)),
        }
    }

    /// Asks for a change, and waits until vfkit says that it is made.
    pub(crate) async fn change(&self, change: Change) -> Result<(), RestError> {
        let body = format!("{{\"state\":\"{}\"}}", change.name());
        let answer = self.request(Method::POST, Some(body)).await?;
        if answer.status.is_success() {
            return Ok(());
        }
        let parsed: Option<Value> = serde_json::from_slice(&answer.body).ok();
        match parsed.as_ref().and_then(|value| value["error"].as_str()) {
            Some(error) => Err(RestError::Refused(error.to_owned())),
            None => Err(nonsense(&answer)),
        }
    }

    async fn request(&self, method: Method, body: Option<String>) -> Result<Answer, RestError> {
        let request = http::request(&self.socket, method, "/vm/state", body);
        match tokio::time::timeout(ANSWER_LIMIT, request).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(RestError::TooLate),
        }
    }
}

fn nonsense(answer: &Answer) -> RestError {
    let text = String::from_utf8_lossy(&answer.body);
    RestError::Nonsense {
        status: answer.status,
        text: text.chars().take(200).collect(),
    }
}

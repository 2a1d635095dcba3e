//! One HTTP/1.1 request over a Unix socket.

use std::io;
use std::path::Path;
use std::pin::pin;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

/// The longest answer that is read, in bytes; vfkit's have a few hundred.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// Nobody listens on the socket.
    #[error("nobody listens on its socket: {0}")]
    Connect(#[source] io::Error),
    /// What came back is not HTTP.
    #[error("it did not answer in HTTP: {0}")]
    Protocol(#[from] hyper::Error),
    /// What came back is too long or ended early.
    #[error("its answer cannot be read: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The request could not be written.
    #[error("the request cannot be made: {0}")]
    Request(#[from] hyper::http::Error),
}

impl HttpError {
    /// Whether there was nobody at the other end, or not to the end of the exchange.
    pub(crate) fn is_broken_connection(&self) -> bool {
        match self {
            Self::Connect(_) => true,
            Self::Protocol(error) => !error.is_parse(),
            _ => false,
        }
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

/// Sends one request and reads the whole answer. No time limit of its own.
pub(crate) async fn request(
    socket: &Path,
    method: Method,
    path: &str,
    json: Option<String>,
) -> Result<Answer, HttpError> {
    let stream = UnixStream::connect(socket)
        .await
        .map_err(HttpError::Connect)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "vfkit")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(json.unwrap_or_default())))?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(HttpError::Body)?
            .to_bytes();
        Ok(Answer { status, body })
    };
    let mut connection = pin!(connection);
    let mut exchange = pin!(exchange);
    let mut connected = true;
    loop {
        tokio::select! {
            biased;
            answer = &mut exchange => return answer,
            // Its error reaches the exchange, too.
            _ended = &mut connection, if connected => connected = false,
        }
    }
}

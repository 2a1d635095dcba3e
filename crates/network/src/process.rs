//! Starting a network and following it.

use std::io;
use std::os::unix::net::UnixStream;

use capsa_net::{ControlClient, Engine, NetworkConfig};
use tokio::sync::watch;

/// Where a network runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Place {
    /// In a process of its own, where there can be one.
    #[default]
    OwnProcess,
    /// On a thread of the caller's process, which is there for nothing else, or for debugging.
    CallersProcess,
}

/// How a network ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkEnd {
    /// What became of its process, such as `was killed by signal 9 (SIGKILL)`.
    pub reason: String,
    /// The end of what it wrote to its error output.
    pub last_words: String,
}

/// Why a network could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its configuration is wrong.
    #[error(transparent)]
    Config(#[from] capsa_net::ConfigError),
    /// Sockets, a process or a thread could not be made.
    #[error("the network's process cannot be started: {0}")]
    Io(#[from] io::Error),
    /// It ended at once.
    #[error("the network's process {}{}", .0.reason, said(.0))]
    Ended(NetworkEnd),
}

fn said(end: &NetworkEnd) -> String {
    match end.last_words.trim() {
        "" => String::new(),
        words => format!(": {words}"),
    }
}

/// A running network. Dropping it ends the network.
#[derive(Debug)]
pub struct NetworkProcess {
    client: ControlClient,
    end: watch::Receiver<Option<NetworkEnd>>,
    #[cfg(target_os = "linux")]
    process: Option<(u32, capsa_process::Killer)>,
}

impl NetworkProcess {
    /// Starts a network without guests (those of `config` are left out) and waits until it runs.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left behind.
    pub async fn start(config: &NetworkConfig, place: Place) -> Result<Self, StartError> {
        config.check()?;
        let config = NetworkConfig {
            guests: Vec::new(),
            ..config.clone()
        };
        let (ours, theirs) = UnixStream::pair()?;
        let client = ControlClient::new(ours)?;
        let network = match place {
            #[cfg(target_os = "linux")]
            Place::OwnProcess => in_a_process(client, &config, theirs).await?,
            _ => on_a_thread(client, config, theirs)?,
        };
        match network.client.ping().await {
            Ok(()) => Ok(network),
            Err(_) => Err(StartError::Ended(network.ended().await)),
        }
    }

    /// Steers it.
    pub fn client(&self) -> &ControlClient {
        &self.client
    }

    /// Its process number; `None` where it runs on a thread.
    pub fn process_id(&self) -> Option<u32> {
        #[cfg(target_os = "linux")]
        return self.process.as_ref().map(|(id, _)| *id);
        #[cfg(not(target_os = "linux"))]
        None
    }

    /// Waits for its end.
    pub async fn ended(&self) -> NetworkEnd {
        wait_for_end(self.end.clone()).await
    }

    /// Waits for its end, without holding it.
    pub fn watch_end(&self) -> impl Future<Output = NetworkEnd> + Send + use<> {
        wait_for_end(self.end.clone())
    }
}

impl Drop for NetworkProcess {
    fn drop(&mut self) {
        #[cfg(target_os = "linux")]
        if let Some((_, killer)) = &self.process {
            killer.kill();
        }
    }
}

async fn wait_for_end(mut end: watch::Receiver<Option<NetworkEnd>>) -> NetworkEnd {
    let ended = end.wait_for(Option::is_some).await;
    match ended.ok().and_then(|end| end.clone()) {
        Some(end) => end,
        None => NetworkEnd {
            reason: "went with the async runtime".to_owned(),
            last_words: String::new(),
        },
    }
}

#[cfg(target_os = "linux")]
async fn in_a_process(
    client: ControlClient,
    config: &NetworkConfig,
    theirs: UnixStream,
) -> Result<NetworkProcess, StartError> {
    use std::os::fd::AsFd;

    let other = |error: &dyn std::error::Error| io::Error::other(error.to_string());
    let message = crate::message::encode(config).map_err(|error| other(&error))?;
    let (socket, their_socket) = capsa_process::ControlSocket::pair()?;
    // It waits in the socket until the process is there, which knows by it what it is.
    capsa_process::send(&socket, &message, &[theirs.as_fd()]).map_err(|error| other(&error))?;
    drop(theirs);
    let started = tokio::task::spawn_blocking({
        let runtime = tokio::runtime::Handle::current();
        move || {
            let _entered = runtime.enter();
            crate::serve::NETWORK.start(&capsa_process::own_executable(), their_socket)
        }
    });
    let process = started
        .await
        .map_err(io::Error::other)?
        .map_err(|error| other(&error))?;
    let kept = (process.id(), process.killer());
    let (sender, end) = watch::channel(None);
    tokio::spawn(async move {
        let ended = process.ended().await;
        drop(socket);
        sender.send_replace(Some(NetworkEnd {
            reason: ended.reason.to_string(),
            last_words: ended.last_words,
        }));
    });
    Ok(NetworkProcess {
        client,
        end,
        process: Some(kept),
    })
}

fn on_a_thread(
    client: ControlClient,
    config: NetworkConfig,
    theirs: UnixStream,
) -> Result<NetworkProcess, StartError> {
    let (sender, end) = watch::channel(None);
    std::thread::Builder::new()
        .name("capsa-network".to_owned())
        .spawn(move || {
            let ran = Engine::new(config, Vec::new(), theirs)
                .map_err(|error| error.to_string())
                .and_then(|engine| engine.run().map_err(|error| error.to_string()));
            sender.send_replace(Some(NetworkEnd {
                reason: "ended".to_owned(),
                last_words: ran.err().unwrap_or_default(),
            }));
        })?;
    Ok(NetworkProcess {
        client,
        end,
        #[cfg(target_os = "linux")]
        process: None,
    })
}

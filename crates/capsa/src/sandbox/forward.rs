use std::net::SocketAddr;

use capsa_agent_client::AgentClient;
use capsa_core::Error;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::SandboxError;

/// A port of the host that leads to one of the sandbox. Dropping it closes the port and every
/// connection that came through it.
#[derive(Debug)]
pub struct Forward {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Forward {
    pub(super) async fn start(
        agent: AgentClient,
        host: SocketAddr,
        guest_port: u16,
    ) -> Result<Self, SandboxError> {
        let cannot = |error| Error::io(format!("cannot listen on {host}"), error);
        let listener = TcpListener::bind(host).await.map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        Ok(Self {
            address,
            task: tokio::spawn(serve(listener, agent, guest_port)),
        })
    }

    /// The host's address, with the port that was chosen where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, agent: AgentClient, guest_port: u16) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(carry(stream, agent.clone(), guest_port));
                }
                Err(error) => {
                    tracing::warn!(%error, "a forwarded port takes no more connections");
                    return;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Carries one connection. Where the guest does not listen, the host's side is closed.
async fn carry(mut stream: TcpStream, agent: AgentClient, guest_port: u16) {
    let carried = async {
        stream.set_nodelay(true)?;
        let mut guest = agent
            .connect_port(guest_port)
            .await
            .map_err(std::io::Error::other)?;
        copy_bidirectional(&mut stream, &mut guest).await
    };
    if let Err(error) = carried.await {
        tracing::debug!(%error, guest_port, "a forwarded connection failed");
    }
}

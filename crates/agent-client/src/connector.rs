use std::io;

use async_trait::async_trait;
use capsa_core::ByteStream;

/// Opens connections to an agent: to vsock port [`AGENT_PORT`](crate::AGENT_PORT) of its guest.
///
/// Every function that gives a future of a stream is one.
#[async_trait]
pub trait Connector: Send + Sync + 'static {
    /// Opens one more.
    ///
    /// # Errors
    /// Why there is none: nobody listens, or the VM has ended.
    async fn connect(&self) -> io::Result<Box<dyn ByteStream>>;
}

#[async_trait]
impl<F, R> Connector for F
where
    F: Fn() -> R + Send + Sync + 'static,
    R: Future<Output = io::Result<Box<dyn ByteStream>>> + Send,
{
    async fn connect(&self) -> io::Result<Box<dyn ByteStream>> {
        self().await
    }
}

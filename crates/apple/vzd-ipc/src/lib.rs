//! The protocol between the library and the macOS daemon, `capsa-vzd`.
//!
//! Both ends of a Unix stream socket begin with a [`Hello`] in a fixed layout, so that each can name
//! the other's version whatever else changes. Then the library sends [`ToDaemon`] and the daemon
//! [`ToLibrary`], each in a frame: length, number of descriptors, postcard-encoded message. The
//! descriptors travel beside the frame's first byte (`SCM_RIGHTS`). macOS has no sequenced-packet
//! sockets, so the Linux monitor's messages of the same meaning could not be framed the same way.
//!
//! Decoding accepts any bytes: it fails, and never panics or allocates more than a small multiple of
//! what came in.

mod frame;
mod hello;
mod message;
#[cfg(unix)]
mod stream;
#[cfg(all(test, unix))]
mod tests;

pub use frame::{
    FrameDecoder, FrameError, HEADER_BYTES, MAX_DESCRIPTORS, MAX_MESSAGE_BYTES, decode, encode,
};
pub use hello::{HELLO_BYTES, Hello, HelloError, VERSION};
pub use message::{Command, Request, Start, ToDaemon, ToLibrary};
#[cfg(unix)]
pub use stream::{IpcError, IpcReceiver, IpcSender, connect};

//! What a hostile front end sends, told by a fuzzer's bytes.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "it is for fuzz targets and tests, which fail by panicking"
)]

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use capsa_virtio::rng::{DEFAULT_LIMITS, Rng};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::serve;

/// Most messages of one run.
const MESSAGES: usize = 64;
/// Size of the memory that is handed over.
const MEMORY: u64 = 1 << 20;
/// Version 1 of the protocol, in a message's flags.
const VERSION: u32 = 1;

/// Sends messages of any kind, content and length, with memory, an event descriptor or nothing beside each, and goes.
/// The server has to come back, whatever came.
///
/// # Panics
/// Where it does not, or the machine has no descriptors left.
pub fn messages(mut script: &[u8]) {
    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let server = std::thread::spawn(move || {
        // It says what was wrong with the messages, which is no news here.
        let _broken = serve(theirs, Box::new(Rng::new(DEFAULT_LIMITS)), "device", || {
            Ok(())
        });
    });
    // Where the server has had enough, sending fails.
    ours.set_nonblocking(true).expect("a socket");
    for _ in 0..MESSAGES {
        let Some((head, rest)) = script.split_first_chunk::<4>() else {
            break;
        };
        let [request, beside, low, high] = *head;
        let len = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (payload, rest) = rest.split_at(len);
        script = rest;
        // The highest bit has the length told wrong.
        let told = if request & 0x80 == 0 {
            len as u32
        } else {
            u32::from(low) << 24 | len as u32
        };
        let need_reply = u32::from(beside & 0x80 != 0) << 3;
        let header = [u32::from(request & 0x7f), VERSION | need_reply, told];
        let header = header.map(u32::to_le_bytes).concat();
        if send(&ours, &[&header, payload], descriptor(beside & 0x7f)).is_err() {
            break;
        }
    }
    drop(ours);
    server.join().expect("the server panicked");
}

fn descriptor(which: u8) -> Option<OwnedFd> {
    match which % 4 {
        1 => {
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let memory = memfd_create("memory", flags).expect("memory");
            ftruncate(&memory, MEMORY).expect("memory");
            fcntl_add_seals(&memory, SealFlags::SHRINK).expect("memory");
            Some(memory)
        }
        2 => Some(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an event")),
        // Memory that can shrink.
        3 => Some(memfd_create("memory", MemfdFlags::CLOEXEC).expect("memory")),
        _ => None,
    }
}

fn send(socket: &UnixStream, parts: &[&[u8]], beside: Option<OwnedFd>) -> rustix::io::Result<()> {
    let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let borrowed = beside.as_ref().map(AsFd::as_fd);
    if let Some(borrowed) = &borrowed {
        ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(
            borrowed,
        )));
    }
    sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

//! A TAP device that is bridged to a frame socket: the guest's network card.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use capsa_net::{FrameFormat, Offloads, offer_offloads};
use rustix::net::{RecvFlags, SendFlags, recv, send};

const IFF_TAP: libc::c_short = 2;
const IFF_NO_PI: libc::c_short = 0x1000;
const IFF_VNET_HDR: libc::c_short = 0x4000;

/// Makes `tap0` in the calling thread's namespace and moves frames between it and `socket` until
/// the socket closes.
pub fn attach(socket: OwnedFd, format: FrameFormat) {
    let virtio = format == FrameFormat::Virtio;
    let tap = open(virtio);
    if virtio {
        let offer = offer_offloads(Offloads {
            checksum: true,
            tcp4: true,
            tcp6: true,
        });
        send(&socket, &offer, SendFlags::empty()).unwrap();
    }
    let (from_tap, to_tap) = (tap.try_clone().unwrap(), tap);
    let (to_net, from_net) = (socket.try_clone().unwrap(), socket);
    if format == FrameFormat::Stream {
        let (to_net, from_net) = (UnixStream::from(to_net), UnixStream::from(from_net));
        std::thread::spawn(move || stream_out(from_tap, to_net));
        std::thread::spawn(move || stream_in(from_net, to_tap));
        return;
    }
    std::thread::spawn(move || {
        let mut buffer = vec![0; 70_000];
        let mut from_tap = from_tap;
        // Ends with the namespace, which takes the device away.
        while let Ok(length) = from_tap.read(&mut buffer) {
            if send(&to_net, &buffer[..length], SendFlags::NOSIGNAL).is_err() {
                break;
            }
        }
    });
    std::thread::spawn(move || {
        let mut buffer = vec![0; 70_000];
        let mut to_tap = to_tap;
        while let Ok((length, _)) = recv(&from_net, &mut buffer[..], RecvFlags::empty()) {
            if length == 0 {
                break;
            }
            // A device that is down refuses frames.
            let _ = to_tap.write(&buffer[..length]);
        }
    });
}

fn stream_out(mut tap: File, mut socket: UnixStream) {
    let mut buffer = vec![0; 70_000];
    while let Ok(length) = tap.read(&mut buffer[4..]) {
        buffer[..4].copy_from_slice(&(length as u32).to_be_bytes());
        if socket.write_all(&buffer[..4 + length]).is_err() {
            break;
        }
    }
}

fn stream_in(mut socket: UnixStream, mut tap: File) {
    let mut buffer = vec![0; 70_000];
    let mut prefix = [0; 4];
    while socket.read_exact(&mut prefix).is_ok() {
        let length = u32::from_be_bytes(prefix) as usize;
        if socket.read_exact(&mut buffer[..length]).is_err() {
            break;
        }
        let _ = tap.write(&buffer[..length]);
    }
}

fn open(virtio: bool) -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let fd = file.as_raw_fd();
    let check = |result: libc::c_int| assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"tap0") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = IFF_TAP | IFF_NO_PI | if virtio { IFF_VNET_HDR } else { 0 };
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives until the call returns.
    check(unsafe { libc::ioctl(fd, libc::TUNSETIFF as _, &mut request) });
    if virtio {
        let size: libc::c_int = 12;
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        check(unsafe { libc::ioctl(fd, libc::TUNSETVNETHDRSZ as _, &size) });
        let offloads: libc::c_ulong = 1 | 2 | 4; // checksum, TSO over IPv4, over IPv6
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        check(unsafe { libc::ioctl(fd, libc::TUNSETOFFLOAD as _, offloads) });
    }
    file
}

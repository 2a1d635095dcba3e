//! How the device process is confined: it keeps what it was handed, and one list of system calls for all
//! its threads, whose devices are of every kind.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use capsa_process::confine::When::Is;
use capsa_process::confine::lists::{
    DIRECTORIES, EVENT_LOOP, EVERY_THREAD, NEW_DEVICES, NEW_THREADS, NO_PATHS, OPEN_FILES, SOCKETS,
};
use capsa_process::confine::{
    Access, Confinement, Filter, Layer, Missing, Policy, Rule, allow, allow_when, confine,
};
use capsa_virtio::setup::DeviceSetup;
use libc::*;

const POLICY: Policy = Policy {
    thread: "device",
    rules: &[
        EVERY_THREAD,
        NO_PATHS,
        NEW_THREADS,
        NEW_DEVICES,
        EVENT_LOOP,
        SOCKETS,
        OPEN_FILES,
        DIRECTORIES,
        MESSAGES,
    ],
};

/// Those of QEMU and of the library.
const MESSAGES: &[Rule] = &[
    allow(SYS_poll),
    allow(SYS_ppoll),
    // Kicks and calls never make a device wait
    allow_when(SYS_ioctl, &[Is(1, FIONBIO as u32)]),
    // `abort` takes handlers away
    allow(SYS_rt_sigaction),
];

/// Confines this process, which has one thread, to its devices' descriptors. Says what this host cannot
/// take away.
pub(super) fn enter(
    control: &OwnedFd,
    devices: &[DeviceSetup],
    handed: &[OwnedFd],
) -> Vec<Missing> {
    let descriptors = handed.iter().map(AsRawFd::as_raw_fd);
    let mut kept = Confinement {
        descriptors: descriptors.chain([control.as_raw_fd()]).collect(),
        directories: directories(devices, handed),
    };
    let mut missing = Vec::new();
    if devices.iter().any(serves_a_directory) {
        match capsa_virtio::fs::keep_descriptors_in_reach() {
            Ok(descriptor) => kept.descriptors.push(descriptor.as_raw_fd()),
            // The share says so itself when it is made.
            Err(error) => tracing::warn!(%error, "cannot open /proc/self/fd"),
        }
    }
    missing.extend(confine(&kept));
    let filtered = Filter::compile(&POLICY)
        .map_err(io::Error::other)
        .and_then(|filter| filter.install());
    missing.extend(
        filtered
            .err()
            .map(|error| Missing::new(Layer::SystemCalls, error)),
    );
    missing
}

fn serves_a_directory(setup: &DeviceSetup) -> bool {
    matches!(setup, DeviceSetup::Fs(_))
}

/// The shared directories. What each device was handed follows its socket to QEMU.
fn directories<'f>(
    devices: &[DeviceSetup],
    handed: &'f [OwnedFd],
) -> Vec<(BorrowedFd<'f>, Access)> {
    let mut rest = handed.iter();
    let mut directories = Vec::new();
    for setup in devices {
        let _socket = rest.next();
        let mut files = rest.by_ref().take(setup.descriptors());
        if let (DeviceSetup::Fs(options), Some(root)) = (setup, files.next()) {
            let access = match options.read_only {
                true => Access::Read,
                false => Access::Write,
            };
            directories.push((root.as_fd(), access));
        }
        files.for_each(drop);
    }
    directories
}

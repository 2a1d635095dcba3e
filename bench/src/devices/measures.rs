//! What is measured.

use std::fmt;

use clap::{Args, ValueEnum};

use crate::guest::MOUNTED;
use crate::peers::{Side, StreamsOfQemu};

const MIB: u64 = 1 << 20;

/// How much is done.
#[derive(Args)]
pub(crate) struct Sizes {
    /// MiB that are read from, and written to, a disk in order, and of which small requests take a quarter; the
    /// disk's size.
    #[arg(long, default_value_t = 512)]
    pub(crate) sequential: u64,
    /// MiB that are read from, and written to, all over a disk, 4 KiB at a time.
    #[arg(long, default_value_t = 64)]
    pub(crate) random: u64,
    /// Random requests under way at any time.
    #[arg(long, default_value_t = 16)]
    pub(crate) depth: u32,
    /// Small files that are unpacked into a share.
    #[arg(long, default_value_t = 20_000)]
    pub(crate) files: u32,
    /// MiB of the file that is read from a share.
    #[arg(long, default_value_t = 512)]
    pub(crate) share: u64,
    /// MiB that go through a connection in each direction.
    #[arg(long, default_value_t = 512)]
    pub(crate) stream: u64,
    /// Bytes that go there and back, one at a time.
    #[arg(long, default_value_t = 20_000)]
    pub(crate) pings: u64,
}

/// The kinds of devices. Each has a machine of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    Block,
    Share,
    Vsock,
}

impl Group {
    pub(crate) const ALL: [Self; 3] = [Self::Block, Self::Share, Self::Vsock];
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Block => "disk",
            Self::Share => "share",
            Self::Vsock => "vsock",
        })
    }
}

/// What an amount is a number of.
#[derive(Clone, Copy)]
pub(crate) enum Unit {
    Mib,
    Requests,
    Files,
    RoundTrips,
}

impl Unit {
    /// What `amount` in `seconds` comes to.
    pub(crate) fn rate(self, amount: u64, seconds: f64) -> String {
        let rate = amount as f64 / seconds;
        match self {
            Self::Mib => format!("{rate:.1} MiB/s"),
            Self::Requests => format!("{rate:.0}/s"),
            Self::Files => format!("{rate:.1} files/s"),
            Self::RoundTrips => format!("{:.0} µs", 1e6 / rate),
        }
    }
}

pub(crate) struct Measure {
    pub(crate) name: String,
    pub(crate) group: Group,
    pub(crate) amount: u64,
    pub(crate) unit: Unit,
    command: String,
    /// Where QEMU's guest has to say something else.
    command_of_qemu: Option<String>,
}

impl Measure {
    fn new(group: Group, name: &str, amount: u64, unit: Unit, command: String) -> Self {
        Self {
            name: name.to_owned(),
            group,
            amount,
            unit,
            command,
            command_of_qemu: None,
        }
    }

    /// What the guest is told.
    pub(crate) fn command(&self, side: Side) -> &str {
        match (side, &self.command_of_qemu) {
            (Side::Qemu, Some(command)) => command,
            _ => &self.command,
        }
    }
}

/// All measures, in order.
pub(crate) fn all(sizes: &Sizes, streams: StreamsOfQemu) -> Vec<Measure> {
    let mut all = disk(sizes);
    all.extend(share(sizes));
    all.extend(vsock(sizes, streams));
    all
}

fn disk(sizes: &Sizes) -> Vec<Measure> {
    let mut measures = Vec::new();
    for (what, verb) in [("read", "seq-read"), ("write", "seq-write")] {
        for (amount, size, name) in [
            (sizes.sequential, MIB, "1 MiB"),
            (sizes.sequential.div_ceil(4), MIB / 16, "64 KiB"),
        ] {
            let bytes = amount * MIB;
            measures.push(Measure::new(
                Group::Block,
                &format!("disk: {what}, {name}"),
                amount,
                Unit::Mib,
                format!("/bench-guest {verb} /dev/vda {bytes} {size}"),
            ));
        }
    }
    let requests = sizes.random * 256;
    let depth = sizes.depth;
    for (what, verb) in [("read", "random-read"), ("write", "random-write")] {
        measures.push(Measure::new(
            Group::Block,
            &format!("disk: {what}, 4 KiB at random, {depth} at once"),
            requests,
            Unit::Requests,
            format!("/bench-guest {verb} /dev/vda {requests} {depth}"),
        ));
    }
    measures
}

fn share(sizes: &Sizes) -> Vec<Measure> {
    // What the guest has cached of the share is not to be measured.
    let fresh = "sync; echo 3 > /proc/sys/vm/drop_caches";
    vec![
        Measure::new(
            Group::Share,
            "share: tar x of small files",
            u64::from(sizes.files),
            Unit::Files,
            format!(
                "{fresh}; mkdir {MOUNTED}/tree && /bench-guest untar /archive.tar {MOUNTED}/tree"
            ),
        ),
        Measure::new(
            Group::Share,
            "share: read a file",
            sizes.share,
            Unit::Mib,
            format!("{fresh}; /bench-guest share-read {MOUNTED}/large"),
        ),
    ]
}

fn vsock(sizes: &Sizes, streams: StreamsOfQemu) -> Vec<Measure> {
    let bytes = sizes.stream * MIB;
    let of_capsa = StreamsOfQemu::Vsock.address();
    let of_qemu = streams.address();
    [
        ("to the host", "send", bytes, sizes.stream, Unit::Mib),
        ("from the host", "receive", bytes, sizes.stream, Unit::Mib),
        (
            "a byte there and back",
            "ping",
            sizes.pings,
            sizes.pings,
            Unit::RoundTrips,
        ),
    ]
    .into_iter()
    .map(|(what, verb, argument, amount, unit)| {
        let command = |address: &str| format!("/bench-guest {verb} {address} {argument}");
        let name = format!("vsock: {what}{}", streams.remark());
        let mut measure = Measure::new(Group::Vsock, &name, amount, unit, command(&of_capsa));
        measure.command_of_qemu = Some(command(&of_qemu));
        measure
    })
    .collect()
}

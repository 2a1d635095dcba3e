//! The commands.

use std::fmt::Display;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use crate::disk::{self, Direction};
use crate::{archive, share, stream};

const USAGE: &str = "\
seq-read|seq-write DISK BYTES REQUEST-BYTES, random-read|random-write DISK REQUESTS DEPTH, \
make-archive FILE COUNT, untar FILE DIRECTORY, share-read FILE, \
receive|send ADDRESS BYTES, ping ADDRESS COUNT; an ADDRESS is vsock:PORT or tcp:HOST:PORT";

/// Carries a command out. Gives the time, of those that are measured.
pub(crate) fn run(arguments: &[String]) -> io::Result<Option<Duration>> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let time = match words[..] {
        ["seq-read", disk, bytes, request] => {
            disk::sequential(Direction::Read, disk, number(bytes)?, number(request)?)
        }
        ["seq-write", disk, bytes, request] => {
            disk::sequential(Direction::Write, disk, number(bytes)?, number(request)?)
        }
        ["random-read", disk, requests, depth] => {
            disk::random(Direction::Read, disk, number(requests)?, number(depth)?)
        }
        ["random-write", disk, requests, depth] => {
            disk::random(Direction::Write, disk, number(requests)?, number(depth)?)
        }
        ["make-archive", file, count] => return archive::make(file, number(count)?).map(|()| None),
        ["untar", file, directory] => share::untar(file, directory),
        ["share-read", file] => share::read(file),
        ["receive", address, bytes] => stream::receive(address, number(bytes)?),
        ["send", address, bytes] => stream::send(address, number(bytes)?),
        ["ping", address, count] => stream::ping(address, number(count)?),
        _ => return Err(io::Error::other(format!("the commands are {USAGE}"))),
    };
    time.map(Some)
}

fn number<N: FromStr<Err: Display>>(text: &str) -> io::Result<N> {
    text.parse()
        .map_err(|error| io::Error::other(format!("{text:?} is not a number: {error}")))
}

//! The host's side of the connections: does what the first nine bytes say, a letter and a number of bytes.

use std::io::{self, Read, Write};
use std::thread;

const PIECE: usize = 64 << 10;

/// Serves each connection that `accept` gives, on a thread of its own, for as long as this process lives.
pub(crate) fn serve<S, A>(mut accept: A)
where
    S: Read + Write + Send + 'static,
    A: FnMut() -> io::Result<S> + Send + 'static,
{
    thread::spawn(move || {
        loop {
            match accept() {
                Ok(mut stream) => {
                    thread::spawn(move || {
                        if let Err(error) = talk(&mut stream) {
                            eprintln!("a connection failed: {error}");
                        }
                    });
                }
                Err(error) => return eprintln!("no connection is accepted any more: {error}"),
            }
        }
    });
}

fn talk(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut what = [0; 1];
    let mut count = [0; 8];
    stream.read_exact(&mut what)?;
    stream.read_exact(&mut count)?;
    let count = u64::from_le_bytes(count);
    match &what {
        b"S" => send(stream, count),
        b"R" => receive(stream, count),
        b"E" => echo(stream, count),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn send(stream: &mut impl Write, count: u64) -> io::Result<()> {
    let buffer = vec![0x5a; PIECE];
    let mut left = count;
    while left > 0 {
        let (piece, _) = buffer.split_at(left.min(PIECE as u64) as usize);
        stream.write_all(piece)?;
        left -= piece.len() as u64;
    }
    Ok(())
}

/// Says with one byte that all has come.
fn receive(stream: &mut (impl Read + Write), count: u64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut received = 0;
    while received < count {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            some => received += some as u64,
        }
    }
    stream.write_all(&[1])
}

fn echo(stream: &mut (impl Read + Write), count: u64) -> io::Result<()> {
    let mut byte = [0; 1];
    for _ in 0..count {
        stream.read_exact(&mut byte)?;
        stream.write_all(&byte)?;
    }
    Ok(())
}

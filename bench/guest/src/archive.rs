//! An archive of many small files, such as a source tree is.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use crate::random::Random;

const BLOCK: usize = 512;
/// Most bytes of a file, excluded.
const LARGEST: u64 = 4096;
const FILES_OF_A_DIRECTORY: u32 = 100;

/// Makes the archive `path` with `count` files, a hundred in each directory, of up to 4 KiB.
pub(crate) fn make(path: &str, count: u32) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut random = Random::new();
    let content = [0x5a; LARGEST as usize];
    for number in 0..count {
        let directory = format!("d{}/", number / FILES_OF_A_DIRECTORY);
        if number % FILES_OF_A_DIRECTORY == 0 {
            out.write_all(&header(&directory, b'5', 0o755, 0))?;
        }
        let size = random.below(LARGEST) as usize;
        out.write_all(&header(&format!("{directory}f{number}"), b'0', 0o644, size))?;
        let (data, _) = content.split_at(size);
        out.write_all(data)?;
        out.write_all(&vec![0; size.next_multiple_of(BLOCK) - size])?;
    }
    out.write_all(&[0; 2 * BLOCK])?;
    out.flush()
}

/// The header of an entry of root's.
fn header(name: &str, kind: u8, mode: u32, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    field(&mut bytes, name.as_bytes(), 100);
    for (value, width) in [(mode as usize, 8), (0, 8), (0, 8), (size, 12), (1, 12)] {
        let digits = width - 1;
        field(&mut bytes, format!("{value:0digits$o}").as_bytes(), width);
    }
    let sum_at = bytes.len();
    bytes.extend(b"        ");
    bytes.push(kind);
    field(&mut bytes, b"", 100);
    bytes.extend(b"ustar\x0000");
    bytes.resize(BLOCK, 0);
    // The sum of all bytes, with blanks where it will stand.
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    for (to, from) in bytes.iter_mut().skip(sum_at).zip(sum.bytes()) {
        *to = from;
    }
    bytes
}

fn field(bytes: &mut Vec<u8>, value: &[u8], width: usize) {
    let end = bytes.len() + width;
    bytes.extend(value);
    bytes.resize(end, 0);
}

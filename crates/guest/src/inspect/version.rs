//! Finding the release of a kernel in its banner, `Linux version 6.12.1-name (builder) …`.

use std::io::{Read, Seek};

use super::InspectErrorKind;
use super::input::Input;

const BANNER: &[u8] = b"Linux version ";
/// How far a file is searched.
const SEARCH_BYTES: u64 = 128 << 20;
const CHUNK_BYTES: usize = 256 << 10;
/// The longest release that is taken for one: `uname` has room for 64 bytes.
const RELEASE_BYTES: usize = 64;

/// The release in the first banner of the first [`SEARCH_BYTES`].
pub(super) fn search<R: Read + Seek>(
    input: &mut Input<'_, R>,
) -> Result<Option<String>, InspectErrorKind> {
    let end = input.length().min(SEARCH_BYTES);
    // Chunks overlap by a whole banner, so that one across a border is seen in the next chunk.
    let overlap = BANNER.len() + RELEASE_BYTES + 1;
    let mut offset = 0;
    while offset < end {
        let chunk = input.read_at(offset, CHUNK_BYTES + overlap)?;
        if let Some(release) = in_chunk(chunk.as_slice()) {
            return Ok(Some(release));
        }
        offset += CHUNK_BYTES as u64;
    }
    Ok(None)
}

fn in_chunk(chunk: &[u8]) -> Option<String> {
    let mut rest = chunk;
    while let Some(at) = find(rest, BANNER) {
        rest = rest.get(at + BANNER.len()..)?;
        if let Some(release) = release(rest) {
            return Some(release);
        }
    }
    None
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    loop {
        let at = from
            + haystack
                .get(from..)?
                .iter()
                .position(|byte| *byte == first)?;
        if haystack.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

/// The release that `text` begins with: a digit first, so that format strings are none.
pub(super) fn release(text: &[u8]) -> Option<String> {
    let end = text
        .iter()
        .take(RELEASE_BYTES + 1)
        .position(|byte| !byte.is_ascii_graphic())?;
    let release = text.get(..end)?;
    if !release.first()?.is_ascii_digit() {
        return None;
    }
    String::from_utf8(release.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn search_in(bytes: &[u8]) -> Option<String> {
        let mut cursor = Cursor::new(bytes);
        let mut input = Input::new(&mut cursor).unwrap();
        search(&mut input).unwrap()
    }

    #[test]
    fn banner_is_found_behind_format_strings() {
        let bytes = b"Linux version %s (%s)\0Linux Linux version 6.12.1-capsa (me) #1\0";
        assert_eq!(search_in(bytes).as_deref(), Some("6.12.1-capsa"));
    }

    #[test]
    fn banner_across_every_chunk_border_is_found() {
        for shift in 0..40 {
            let mut bytes = vec![0; CHUNK_BYTES - 30 + shift];
            bytes.extend_from_slice(b"Linux version 6.1.0 (x)");
            assert_eq!(search_in(&bytes).as_deref(), Some("6.1.0"), "shift {shift}");
        }
    }

    #[test]
    fn overlong_release_is_none() {
        let bytes = [b"Linux version ".as_slice(), &[b'7'; 70], b" "].concat();
        assert_eq!(search_in(&bytes), None);
    }
}

//! What a host could send, for the fuzzer and the replay of its seeds.

use crate::exec::ExecControl;
use crate::files::ExtractOptions;
use crate::frame::{self, FrameBuffer, Kind};
use crate::tree::Extractor;
use crate::{ProtocolError, Request, preamble};

/// Takes `sent` as an agent does, behind the preamble, and as a tree that is written to a temporary
/// directory.
///
/// # Panics
/// Where a message does not survive the way, or this machine has no temporary directory.
#[allow(clippy::expect_used)]
pub fn agent_request(sent: &[u8]) {
    if let Some((first, _)) = sent.split_first_chunk() {
        let _ = preamble::check(first);
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let place = directory.path().join("in/side");
    let options = ExtractOptions {
        parents: true,
        ..ExtractOptions::default()
    };
    let mut tree = Extractor::new(&place, options).ok();
    let mut buffer = FrameBuffer::of_host();
    buffer.push(sent);
    while let Ok(Some((kind, content))) = buffer.next_frame() {
        if kind == Kind::Message {
            message(content);
        }
        if tree
            .as_mut()
            .is_some_and(|tree| tree.take(kind, content).is_err())
        {
            tree = None;
        }
    }
    let outside = std::fs::read_dir(directory.path()).expect("the temporary directory");
    assert_eq!(
        outside.count(),
        1,
        "something was written outside of its place"
    );
}

fn message(content: &[u8]) {
    let decoded: Result<Request, ProtocolError> = frame::decode(content);
    if let Ok(request) = decoded
        && let Ok(encoded) = frame::message(&request)
    {
        let again = encoded.get(frame::HEAD_BYTES..).map(frame::decode);
        assert_eq!(again, Some(Ok(request)));
    }
    let _ = frame::decode::<ExecControl>(content);
}

#[cfg(test)]
mod tests {
    #[test]
    fn fuzz_seeds_of_a_host_are_borne() {
        let seeds = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../fuzz/seeds/agent_request"
        );
        let mut count = 0;
        for entry in std::fs::read_dir(seeds).unwrap() {
            super::agent_request(&std::fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 6, "{count} seeds");
    }
}

//! What a hostile guest's agent sends, facing the host's client: commands, files, trees, the boot.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|answer: &[u8]| capsa_agent_client::fuzzing::agent_reply(answer));

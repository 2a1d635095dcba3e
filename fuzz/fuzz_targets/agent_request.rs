//! What a host sends, facing the agent's side: its messages, and trees that it writes.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|sent: &[u8]| capsa_agent_protocol::fuzzing::agent_request(sent));

//! The two sides of a monitor's control socket, each facing a hostile other.
#![no_main]

use capsa_linux_kvm::protocol::{self, Event, Request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| {
    if let Ok(start) = protocol::decode_start(message) {
        let again = protocol::encode_start(&start).and_then(|bytes| protocol::decode_start(&bytes));
        assert_eq!(again, Ok(start));
    }
    let _malformed = protocol::decode::<Request>(message);
    let _malformed = protocol::decode::<Event>(message);
});

#![no_main]
//! Frames of a hostile guest into a whole network, see `capsa_net::fuzzing::FrameTarget`.

use std::cell::RefCell;

use capsa_net::fuzzing::FrameTarget;

thread_local! {
    static TARGET: RefCell<FrameTarget> = RefCell::new(FrameTarget::new());
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET.with_borrow_mut(|target| target.frames(data)));

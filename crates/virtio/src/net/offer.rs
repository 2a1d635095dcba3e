//! What the other side of the socket is told of the driver.
//!
//! A message of 14 bytes, which no frame is: a virtio-net header of zeroes, the version of the message, which is 1, and
//! the set of what the driver takes. Before the first one, the other side sends finished frames only.

use super::config::{F_GUEST_CSUM, F_GUEST_TSO4, F_GUEST_TSO6, HEADER};

const VERSION: u8 = 1;
const CHECKSUM: u8 = 1;
const TCP4: u8 = 2;
const TCP6: u8 = 4;

pub(super) type Offer = [u8; HEADER + 2];

/// The message for a driver that negotiated `features`.
pub(super) fn offer(features: u64) -> Offer {
    let mut set = 0;
    // Large segments come without a checksum, so they need it, too (§5.1.3.1).
    if features & F_GUEST_CSUM != 0 {
        set |= CHECKSUM;
        for (feature, bit) in [(F_GUEST_TSO4, TCP4), (F_GUEST_TSO6, TCP6)] {
            if features & feature != 0 {
                set |= bit;
            }
        }
    }
    let mut message = [0; HEADER + 2];
    let [.., version, taken] = &mut message;
    (*version, *taken) = (VERSION, set);
    message
}

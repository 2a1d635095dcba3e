//! Time and entropy.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use capsa_agent_protocol::Timestamp;
use rustix::time::{ClockId, clock_settime};

/// More than the kernel's pool holds is of no use.
const MAX_ENTROPY_BYTES: usize = 4096;
/// `RNDADDENTROPY` of random(4).
const ADD_ENTROPY: libc::Ioctl = 0x4008_5203;

/// Sets the guest's clock.
pub(crate) fn set_clock(time: Timestamp) -> io::Result<()> {
    Ok(clock_settime(ClockId::Realtime, super::timespec(time))?)
}

/// Gives the kernel random bytes of the host, which it counts as such.
pub(super) fn add_entropy(bytes: &[u8]) -> io::Result<()> {
    let bytes = bytes.get(..MAX_ENTROPY_BYTES).unwrap_or(bytes);
    let length = u32::try_from(bytes.len()).unwrap_or(0);
    // `struct rand_pool_info`: bits that count, bytes, the bytes.
    let mut pool = (length * 8).to_ne_bytes().to_vec();
    pool.extend(length.to_ne_bytes());
    pool.extend(bytes);
    let random = File::options().write(true).open("/dev/random")?;
    // SAFETY: the structure is laid out as the call expects, and lives until it returns.
    let added = unsafe { libc::ioctl(random.as_raw_fd(), ADD_ENTROPY, pool.as_ptr()) };
    if added < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

//! The queues: requests, and those that nobody waits for.

use vm_memory::GuestAddressSpace;

use super::server::Server;
use crate::{DeviceError, GuestMemory, Interrupt, Progress, Virtqueue};

/// Requests served per call.
const BUDGET: u32 = 64;

/// Serves what is in a queue. Each reply goes out at once: a guest's program waits for it.
pub(super) fn serve(
    queue: &mut Virtqueue,
    server: &Server,
    memory: &GuestMemory,
    interrupt: &dyn Interrupt,
) -> Result<Progress, DeviceError> {
    let ram = memory.memory();
    queue.disable_kicks(&ram)?;
    for _ in 0..BUDGET {
        let Some(chain) = queue.pop(&ram)? else {
            if queue.enable_kicks(&ram)? {
                continue;
            }
            return Ok(Progress::Done);
        };
        let written = server.serve(&chain, &ram)?;
        queue.push(&ram, chain.head(), written)?;
        queue.notify(&ram, interrupt)?;
    }
    Ok(Progress::More)
}

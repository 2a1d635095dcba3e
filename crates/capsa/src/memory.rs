//! The memory balloon.

use capsa_core::{MemoryReport, MemorySize, Result};

use crate::handle::VmHandle;

impl VmHandle {
    /// Asks the guest to give so much of its memory to the host; zero lets it have everything. It
    /// gives what it can, in its own time ([`memory_report`](Self::memory_report) tells), and takes
    /// it back where it would run out. The VM was built with
    /// [`balloon`](crate::LinuxVmBuilder::balloon).
    ///
    /// # Errors
    /// [`Error::InvalidState`](crate::Error::InvalidState) for a VM that does not run, or has no
    /// balloon.
    pub async fn set_balloon_target(&self, size: impl Into<MemorySize> + Send) -> Result<()> {
        let bytes = size.into().as_bytes();
        let vm = self.running("set the target of its balloon")?;
        vm.set_balloon_target(bytes).await
    }

    /// What the guest tells of its memory, asked for now. A guest that is paused, or has lost its
    /// driver, answers late or never: give it a time limit of your own.
    ///
    /// # Errors
    /// [`Error::InvalidState`](crate::Error::InvalidState) for a VM that does not run or has no
    /// balloon, and a guest that has not loaded its driver yet.
    pub async fn memory_report(&self) -> Result<MemoryReport> {
        self.running("ask for its memory")?.memory_report().await
    }
}

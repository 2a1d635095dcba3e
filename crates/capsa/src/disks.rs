//! The size of disks.

use capsa_core::{BackendVmHandle, Error, MemorySize, Result};

use crate::handle::VmHandle;

impl VmHandle {
    /// Makes a disk of the running VM larger, and tells the guest, which sees the new size at once and
    /// zeroes in what is new; its file system is for the guest to enlarge. `index` counts from 0 in the
    /// order in which the disks were added. The file grows, or the layer of an overlay; a qcow2 image
    /// takes space as it is written.
    ///
    /// # Errors
    /// - [`Error::InvalidSetting`] for a disk that is not there, is read-only, or is a block device of
    ///   the host, and a size that is smaller than the disk's or not a multiple of 512 bytes;
    /// - [`Error::InvalidState`] for a VM that does not run, [`Error::Unsupported`] where the backend
    ///   cannot tell its guest;
    /// - [`Error::Io`] where the host refuses it.
    ///
    /// The guest sees the disk as it was then.
    pub async fn grow_disk(&self, index: usize, size: impl Into<MemorySize> + Send) -> Result<()> {
        let bytes = size.into().as_bytes();
        let vm = self.resizing("grow its disk")?;
        vm.grow_disk(index, bytes).await
    }

    /// Looks whether somebody else has changed the size of a raw disk's file or block device
    /// (`truncate`, `lvextend`), and tells the guest. Returns the present size. A qcow2 image, and with
    /// it an overlay, gets another size by [`grow_disk`](Self::grow_disk) alone.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] for a disk that is not there; else as
    /// [`grow_disk`](Self::grow_disk).
    pub async fn refresh_disk(&self, index: usize) -> Result<MemorySize> {
        let vm = self.resizing("look at its disk again")?;
        Ok(MemorySize::bytes(vm.refresh_disk(index).await?))
    }

    fn resizing(&self, operation: &'static str) -> Result<&dyn BackendVmHandle> {
        let vm = self.running(operation)?;
        if !self.capabilities().disk_resize {
            return Err(Error::unsupported(
                "another size of a disk in use",
                self.backend(),
                "change the file while no VM uses it, or use the kvm backend",
            ));
        }
        Ok(vm)
    }
}

#[cfg(test)]
mod tests {
    use capsa_core::{BackendKind, Error, MemorySize};

    use crate::fake::{FakeBackend, started};

    #[tokio::test]
    async fn disk_on_a_backend_that_cannot_tell_its_guest_is_unsupported() {
        let (vm, _guest) = started().await;

        let grown = vm.grow_disk(0, MemorySize::mib(2)).await;
        let refreshed = vm.refresh_disk(0).await;

        for refused in [grown.err(), refreshed.err()] {
            let Some(Error::Unsupported { setting, .. }) = refused else {
                panic!("{refused:?}")
            };
            assert!(setting.contains("size of a disk"), "{setting}");
        }
    }

    #[tokio::test]
    async fn disk_of_a_vm_that_does_not_run_is_left_alone() {
        let backend = FakeBackend::new(BackendKind::Kvm).with(|can| can.disk_resize = true);
        let (vm, _guest) = backend.vm(|builder| builder).await;

        let grown = vm.grow_disk(0, MemorySize::mib(2)).await;

        let Err(Error::InvalidState { operation, state }) = grown else {
            panic!("{grown:?}")
        };
        assert_eq!((operation, &*state), ("grow its disk", "is not started"));
    }
}

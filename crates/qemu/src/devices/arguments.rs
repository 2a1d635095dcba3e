//! How QEMU is told of the devices.

use std::os::fd::RawFd;

use capsa_core::MemorySize;
use capsa_virtio::setup::DeviceSetup;

/// Where a machine has its devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bus {
    /// `microvm`'s slots for virtio-mmio.
    Mmio,
    /// `q35`'s PCI bus.
    Pci,
}

/// The guest's memory, as another process can map it. QEMU seals the file against shrinking.
pub(super) fn shared_memory(size: MemorySize) -> Vec<String> {
    let size = size.as_bytes();
    vec![
        "-object".to_owned(),
        format!("memory-backend-memfd,id=ram,size={size}B,share=on"),
        "-machine".to_owned(),
        "memory-backend=ram".to_owned(),
    ]
}

/// QEMU's own balloon.
pub(super) fn balloon(bus: Bus) -> Vec<String> {
    let device = match bus {
        Bus::Mmio => "virtio-balloon-device",
        Bus::Pci => "virtio-balloon-pci",
    };
    let device = format!("{device},id=balloon,free-page-reporting=on,deflate-on-oom=on");
    vec!["-device".to_owned(), device]
}

/// A device at the other end of the connected socket `descriptor`; `None` for one that is not
/// served over vhost-user.
pub(super) fn vhost_user(setup: &DeviceSetup, descriptor: RawFd, bus: Bus) -> Option<Vec<String>> {
    let id = format!("vhost{descriptor}");
    let (mmio, pci, rest) = match setup {
        DeviceSetup::Vsock { .. } => (
            "vhost-user-vsock-device",
            "vhost-user-vsock-pci",
            String::new(),
        ),
        DeviceSetup::Fs(options) => (
            "vhost-user-fs-device",
            "vhost-user-fs-pci",
            format!(
                ",tag={},num-request-queues={},queue-size=512",
                // QEMU's way to write a comma in a value.
                options.tag.replace(',', ",,"),
                options.queues
            ),
        ),
        DeviceSetup::Block(block) => (
            "vhost-user-blk",
            "vhost-user-blk-pci",
            format!(",num-queues={},queue-size=256", block.queues),
        ),
        _ => return None,
    };
    let device = match bus {
        Bus::Mmio => mmio,
        Bus::Pci => pci,
    };
    Some(vec![
        "-chardev".to_owned(),
        format!("socket,id={id},fd={descriptor}"),
        "-device".to_owned(),
        format!("{device},chardev={id}{rest}"),
    ])
}

#[cfg(test)]
mod tests {
    use capsa_virtio::fs::FsOptions;

    use super::*;

    #[test]
    fn vsock_device_is_connected_by_its_descriptor() {
        let setup = DeviceSetup::Vsock { guest_cid: 3 };

        let mmio = vhost_user(&setup, 12, Bus::Mmio).unwrap();
        let pci = vhost_user(&setup, 12, Bus::Pci).unwrap();

        assert_eq!(mmio[1], "socket,id=vhost12,fd=12");
        assert_eq!(mmio[3], "vhost-user-vsock-device,chardev=vhost12");
        assert_eq!(pci[3], "vhost-user-vsock-pci,chardev=vhost12");
    }

    #[test]
    fn commas_of_a_tag_are_doubled() {
        let setup = DeviceSetup::Fs(FsOptions::new("a,b"));

        let list = vhost_user(&setup, 12, Bus::Mmio).unwrap();

        assert!(
            list[3].contains("tag=a,,b,num-request-queues=1"),
            "{list:?}"
        );
    }

    #[test]
    fn balloon_is_no_vhost_user_device() {
        assert_eq!(vhost_user(&DeviceSetup::Balloon, 12, Bus::Mmio), None);
    }
}

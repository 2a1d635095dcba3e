//! Virtio devices on virtio-mmio: each in a window of guest-physical memory, kicked by ioeventfds.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use capsa_virtio::console::Console;
use capsa_virtio::mmio::{MmioTransport, REGION_SIZE};
use capsa_virtio::rng::{DEFAULT_LIMITS, Rng};
use capsa_virtio::setup::DeviceControl;
use capsa_virtio::{GuestMemory, InterruptLine, Placement, VirtioDevice, Worker};
use kvm_ioctls::{IoEventAddress, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::boot::cmdline::MmioWindow;
use super::config::DeviceConfig;
use super::error::MachineError;
use super::interrupt::IrqLine;
use super::layout::{VIRTIO_IRQS, VIRTIO_MMIO_BASE, VIRTIO_MMIO_STRIDE};
use super::life::{Prepare, ThreadKind};
use super::panic_watch::PanicWatch;

/// What an address without a device reads as.
const FLOATING: u8 = 0xff;

/// The windows of all virtio devices, side by side.
#[derive(Default)]
pub struct VirtioWindows {
    transports: Vec<MmioTransport>,
}

impl VirtioWindows {
    fn find(&self, address: u64) -> Option<(&MmioTransport, u64)> {
        let offset = address.checked_sub(VIRTIO_MMIO_BASE)?;
        let index = usize::try_from(offset / VIRTIO_MMIO_STRIDE).ok()?;
        Some((self.transports.get(index)?, offset % VIRTIO_MMIO_STRIDE))
    }

    /// The guest reads at `address`. Where there is no device it reads all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((transport, offset)) => transport.read(offset, data),
            None => data.fill(FLOATING),
        }
    }

    /// The guest writes at `address`.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((transport, offset)) = self.find(address) {
            transport.write(offset, data);
        }
    }

    /// The transports, in the order of the configuration.
    pub fn transports(&self) -> &[MmioTransport] {
        &self.transports
    }
}

/// Where the windows of `count` devices lie, and their interrupts.
pub fn windows(count: usize) -> Vec<MmioWindow> {
    (0u64..)
        .zip(VIRTIO_IRQS)
        .take(count)
        .map(|(index, irq)| MmioWindow {
            address: VIRTIO_MMIO_BASE + index * VIRTIO_MMIO_STRIDE,
            size: REGION_SIZE,
            irq,
        })
        .collect()
}

/// What devices are mounted on.
pub struct Host<'a> {
    /// The virtual machine.
    pub vm: &'a Arc<VmFd>,
    /// Its memory.
    pub memory: &'a GuestMemory,
    /// Called first on each thread that runs devices.
    pub prepare: &'a Prepare,
    /// Where consoles show their output.
    pub panics: &'a PanicWatch,
}

/// Devices in their windows, and the threads that run them.
pub struct Mounted {
    /// Where the guest finds them.
    pub windows: VirtioWindows,
    /// The threads: one for those that never wait, and one each for those that wait for files.
    pub workers: Vec<Worker>,
    /// What the host can do to them, in the order of the configuration.
    pub controls: Vec<DeviceControl>,
}

/// Makes the devices and puts each into its window.
///
/// # Errors
/// A device, or what connects it to KVM, cannot be made.
pub fn mount(
    host: &Host<'_>,
    configs: &[DeviceConfig],
    files: Vec<Vec<OwnedFd>>,
) -> Result<Mounted, MachineError> {
    let mut mounted = Mounted {
        windows: VirtioWindows {
            transports: Vec::with_capacity(configs.len()),
        },
        workers: vec![spawn_worker("devices", ThreadKind::Devices, host.prepare)?],
        controls: Vec::with_capacity(configs.len()),
    };
    let windows = windows(configs.len());
    for (index, ((config, files), window)) in configs.iter().zip(files).zip(windows).enumerate() {
        let (device, control) = make(host, config, files)?;
        if device.placement() == Placement::Dedicated {
            let name = format!("device{index}");
            let worker = spawn_worker(&name, ThreadKind::Files, host.prepare)?;
            mounted.workers.push(worker);
        }
        let worker = match device.placement() {
            Placement::Shared => mounted.workers.first(),
            Placement::Dedicated => mounted.workers.last(),
        };
        if let Some(worker) = worker {
            let transport = mount_one(host, worker, device, window)?;
            mounted.windows.transports.push(transport);
            mounted.controls.push(control);
        }
    }
    Ok(mounted)
}

fn spawn_worker(name: &str, kind: ThreadKind, prepare: &Prepare) -> Result<Worker, MachineError> {
    let prepare = prepare.clone();
    Worker::spawn_with(name, move || prepare(kind))
        .map_err(MachineError::host("start a device thread"))
}

fn make(
    host: &Host<'_>,
    config: &DeviceConfig,
    files: Vec<OwnedFd>,
) -> Result<(Box<dyn VirtioDevice>, DeviceControl), MachineError> {
    Ok(match config {
        DeviceConfig::Console => {
            let socket = files.into_iter().next();
            let socket = socket.ok_or_else(|| MachineError::Device {
                device: "console",
                reason: "its descriptor was not handed over".to_owned(),
            })?;
            let (console, _handle) = Console::new(socket);
            let mut panics = host.panics.stream();
            let console = console.watched(move |bytes| panics.feed(bytes));
            (Box::new(console), DeviceControl::None)
        }
        DeviceConfig::Rng => (Box::new(Rng::new(DEFAULT_LIMITS)), DeviceControl::None),
        DeviceConfig::Virtio(setup) => {
            let prepare = host.prepare.clone();
            let hook = Arc::new(move || prepare(ThreadKind::Files));
            let device = setup.kind();
            let made = setup.clone().make(files, Some(hook));
            made.map_err(|error| MachineError::Device {
                device,
                reason: error.to_string(),
            })?
        }
    })
}

fn mount_one(
    host: &Host<'_>,
    worker: &Worker,
    device: Box<dyn VirtioDevice>,
    window: MmioWindow,
) -> Result<MmioTransport, MachineError> {
    let mount = worker
        .handle()
        .add(device)
        .map_err(MachineError::host("put a device on its event loop"))?;
    // The counts are checked by the device crate: queue numbers are 16 bits.
    for index in 0..mount.queue_max_sizes().len() as u16 {
        if let Some(kick) = mount.kick_fd(index) {
            let address = IoEventAddress::Mmio(window.address + MmioTransport::NOTIFY_OFFSET);
            register_kick(host.vm, &kick, &address, index.into())?;
        }
    }
    let line: Arc<dyn InterruptLine> = Arc::new(IrqLine::new(Arc::clone(host.vm), window.irq));
    Ok(MmioTransport::new(mount, host.memory.clone(), line))
}

fn register_kick(
    vm: &VmFd,
    kick: &OwnedFd,
    address: &IoEventAddress,
    queue: u32,
) -> Result<(), MachineError> {
    // SAFETY: the descriptor is an open eventfd; the wrapper that would close it is never dropped.
    let event = ManuallyDrop::new(unsafe { EventFd::from_raw_fd(kick.as_raw_fd()) });
    vm.register_ioevent(&event, address, queue)
        .map_err(MachineError::kvm("connect a device's kick"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_side_by_side_with_interrupts_of_their_own() {
        let windows = windows(VIRTIO_IRQS.len());

        assert_eq!(windows.len(), VIRTIO_IRQS.len());
        for (pair, irqs) in windows.windows(2).zip(VIRTIO_IRQS.windows(2)) {
            assert_eq!(pair[0].address + VIRTIO_MMIO_STRIDE, pair[1].address);
            assert_eq!([pair[0].irq, pair[1].irq], irqs);
        }
    }

    #[test]
    fn address_without_a_device_reads_all_ones() {
        let windows = VirtioWindows::default();
        let mut data = [0; 4];

        for address in [0, VIRTIO_MMIO_BASE, u64::MAX] {
            windows.read(address, &mut data);
            windows.write(address, &[1]);

            assert_eq!(data, [0xff; 4]);
        }
    }
}

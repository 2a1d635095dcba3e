//! The life of a machine, from building it to dropping it.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use capsa_virtio::setup::DeviceControl;
use capsa_virtio::{InterruptLine, Worker};
use kvm_ioctls::VcpuFd;

use super::build::{self, Host};
use super::config::{MachineConfig, MachineFiles};
use super::control::Control;
use super::devices::bus::{BusDevice, PortBus};
use super::devices::i8042::{self, I8042};
use super::devices::power::{self, Power};
use super::devices::pvpanic::PvPanic;
use super::devices::serial::{Serial, SerialThread};
use super::end::MachineEnd;
use super::error::MachineError;
use super::interrupt::IrqLine;
use super::layout;
use super::memory::Ram;
use super::vcpu::run::{Devices, ExitCounts, Vcpu};
use super::virtio_mount::{self, Mounted};

/// A vCPU thread's stack in bytes: its loop calls device models, nothing recursive.
const VCPU_STACK: usize = 256 << 10;

/// The kinds of threads a machine starts; each can be confined in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs guest code.
    Vcpu,
    /// Runs virtio devices that never wait.
    Devices,
    /// Runs a virtio device that waits for files, or carries out its requests.
    Files,
    /// Moves bytes between serial port and socket.
    Serial,
}

/// Called first thing on each of a machine's threads.
pub type Prepare = Arc<dyn Fn(ThreadKind) -> io::Result<()> + Send + Sync>;

/// A virtual machine.
///
/// Dropping it ends the guest wherever it is, joins every thread and frees memory and descriptors.
pub struct Machine {
    control: Arc<Control>,
    power: Arc<Power>,
    /// Those that have not been started yet.
    waiting: Vec<Vcpu>,
    threads: Vec<JoinHandle<()>>,
    exits: Vec<Arc<ExitCounts>>,
    prepare: Prepare,
    // The order of the fields below is that of their end: devices before memory.
    serial_thread: Option<SerialThread>,
    workers: Vec<Worker>,
    controls: Vec<DeviceControl>,
    devices: Arc<Devices>,
    ram: Ram,
}

impl Machine {
    /// Builds a machine that is ready to start.
    ///
    /// # Errors
    /// [`MachineError`] names the setting, the file or the step. Nothing of the guest has run.
    pub fn build(config: &MachineConfig, files: MachineFiles) -> Result<Self, MachineError> {
        Self::build_with(config, files, Arc::new(|_| Ok(())))
    }

    /// Like [`build`](Self::build); `prepare` runs first on each thread (to install its seccomp
    /// filter). A thread for which it fails ends, and with it the machine.
    ///
    /// # Errors
    /// See [`build`](Self::build).
    pub fn build_with(
        config: &MachineConfig,
        mut files: MachineFiles,
        prepare: Prepare,
    ) -> Result<Self, MachineError> {
        config.check()?;
        files.check(config)?;
        let host = Host::new(files.kvm)?;
        host.check(config)?;

        let ram = Ram::new(config.memory)?;
        let entry = build::load(config, &ram, &mut files.kernel, files.initrd.as_mut())?;
        let vm = Arc::new(host.create_vm(&ram)?);
        // At most 64, as was checked.
        let vcpus = host.create_vcpus(&vm, config.vcpus as u8, entry)?;

        let control = Arc::new(
            Control::new().map_err(MachineError::host("create the event that tells of the end"))?,
        );
        let line = |pin| -> Arc<dyn InterruptLine> { Arc::new(IrqLine::new(vm.clone(), pin)) };
        let power = Arc::new(Power::new(control.clone(), line(layout::POWER_IRQ)));
        let serial = files
            .serial
            .map(|socket| {
                let panics = control.panics().stream();
                Serial::new(socket, line(layout::SERIAL_IRQ), panics).map(Arc::new)
            })
            .transpose()
            .map_err(MachineError::host("create the serial port"))?;
        if let Some(serial) = &serial {
            let waiting = Arc::clone(serial);
            control.on_change(move || waiting.interrupt_waits());
        }
        let ports = ports(&control, &power, serial.as_ref())?;

        let memory = ram.shared();
        let mounting = virtio_mount::Host {
            vm: &vm,
            memory: &memory,
            prepare: &prepare,
            panics: control.panics(),
        };
        let Mounted {
            windows: virtio,
            workers,
            controls,
        } = virtio_mount::mount(&mounting, &config.devices, files.devices)?;
        let serial_thread = serial
            .as_ref()
            .map(|serial| {
                let prepare = prepare.clone();
                SerialThread::spawn(serial.clone(), move || prepare(ThreadKind::Serial))
            })
            .transpose()
            .map_err(MachineError::host("start the serial port's thread"))?;
        let devices = Arc::new(Devices {
            ports,
            virtio,
            serial,
        });
        let waiting = waiting_vcpus(vcpus, &control, &devices);
        Ok(Self {
            exits: waiting.iter().map(|vcpu| vcpu.exits.clone()).collect(),
            control,
            power,
            waiting,
            threads: Vec::new(),
            prepare,
            serial_thread,
            workers,
            controls,
            devices,
            ram,
        })
    }

    /// Lets the guest run: for the first time, or again after [`pause`](Self::pause).
    ///
    /// # Errors
    /// The host has no thread left; the machine is ended then.
    pub fn start(&mut self) -> Result<(), MachineError> {
        for vcpu in std::mem::take(&mut self.waiting) {
            let prepare = self.prepare.clone();
            let (control, index) = (self.control.clone(), vcpu.index);
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(VCPU_STACK)
                .spawn(move || match prepare(ThreadKind::Vcpu) {
                    Ok(()) => vcpu.run(),
                    Err(error) => {
                        tracing::error!(index, %error, "a vCPU thread cannot be confined");
                        control.stop();
                    }
                });
            match thread {
                Ok(thread) => self.threads.push(thread),
                Err(error) => {
                    self.control.stop();
                    return Err(MachineError::host("start a vCPU thread")(error));
                }
            }
        }
        self.control.run();
        Ok(())
    }

    /// Brings the guest and its devices to rest; returns when they are. Does nothing after the end.
    ///
    /// # Errors
    /// A device could not be brought to rest. It has asked its driver for a reset; the machine is
    /// paused all the same.
    pub fn pause(&self) -> Result<(), MachineError> {
        self.control.hold();
        let failed: Vec<String> = self
            .workers
            .iter()
            .filter_map(|worker| worker.pause().err())
            .flatten()
            .map(|error| error.to_string())
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        Err(MachineError::Device {
            device: "virtio",
            reason: failed.join("; "),
        })
    }

    /// Goes on after [`pause`](Self::pause).
    pub fn resume(&self) {
        self.workers.iter().for_each(Worker::resume);
        self.control.run();
    }

    /// Presses the power button. What the guest makes of it is its own affair; a guest without ACPI
    /// does not notice.
    ///
    /// # Errors
    /// KVM could not raise the interrupt.
    pub fn power_button(&self) -> Result<(), MachineError> {
        self.power
            .press_button()
            .map_err(MachineError::host("press the power button"))
    }

    /// Ends the guest at once. [`end_event`](Self::end_event) becomes readable, and
    /// [`end`](Self::end) stays `None` unless the guest had ended by itself before.
    pub fn stop(&self) {
        self.control.stop();
    }

    /// Readable from the moment on at which the guest has ended or was stopped.
    pub fn end_event(&self) -> BorrowedFd<'_> {
        self.control.end_event()
    }

    /// How the guest ended by itself, if it has.
    pub fn end(&self) -> Option<MachineEnd> {
        self.control.end_reason()
    }

    /// Waits until the host has taken everything that the guest printed on its serial port, or has
    /// closed its end.
    pub fn wait_for_output(&self) {
        if let Some(serial) = &self.devices.serial {
            serial.wait_until_drained();
        }
    }

    /// How often each vCPU left the guest: port reads, port writes, memory reads, memory writes, other.
    pub fn exit_counts(&self) -> Vec<[u64; 5]> {
        self.exits.iter().map(|exits| exits.get()).collect()
    }

    /// What the host can do to the virtio devices, in the order of the configuration.
    pub fn controls(&self) -> &[DeviceControl] {
        &self.controls
    }

    /// The guest's memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.control.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
        // The vCPUs are gone; now what they would have talked to.
        self.serial_thread = None;
        self.workers.clear();
    }
}

fn ports(
    control: &Arc<Control>,
    power: &Arc<Power>,
    serial: Option<&Arc<Serial>>,
) -> Result<PortBus, MachineError> {
    let mut ports = PortBus::default();
    let mut insert = |device: &'static str, start, len, it: Arc<dyn BusDevice>| {
        if ports.insert(start, len, it) {
            Ok(())
        } else {
            Err(MachineError::Device {
                device,
                reason: "its ports are taken".to_owned(),
            })
        }
    };
    let keyboard = Arc::new(I8042::new(control.clone()));
    insert("i8042", i8042::PORT, i8042::PORTS, keyboard)?;
    insert("power", layout::POWER_PORT, power::PORTS, power.clone())?;
    let pvpanic = Arc::new(PvPanic::new(control.clone()));
    insert("pvpanic", layout::PVPANIC_PORT, 1, pvpanic)?;
    if let Some(serial) = serial {
        insert("serial", layout::SERIAL_PORT, 8, serial.clone())?;
    }
    Ok(ports)
}

fn waiting_vcpus(vcpus: Vec<VcpuFd>, control: &Arc<Control>, devices: &Arc<Devices>) -> Vec<Vcpu> {
    (0u32..)
        .zip(vcpus)
        .map(|(index, fd)| Vcpu {
            index,
            fd,
            control: control.clone(),
            devices: devices.clone(),
            exits: Arc::default(),
        })
        .collect()
}

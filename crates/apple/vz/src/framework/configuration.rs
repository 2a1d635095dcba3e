//! Carries a plan out: one object of the framework for each entry.

use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::Path;

use capsa_apple_plan::{
    EngineFailure, FailureKind, VzBoot, VzDisk, VzNetwork, VzPlan, VzShare, VzVariableStore,
};
use objc2::rc::Retained;
use objc2::{AllocAnyThread, ClassType, available};
use objc2_foundation::{NSArray, NSFileHandle, NSString, NSURL};
use objc2_virtualization::{
    VZBootLoader, VZDirectoryShare, VZDirectorySharingDeviceConfiguration,
    VZDiskImageStorageDeviceAttachment, VZEFIBootLoader, VZEFIVariableStore,
    VZEFIVariableStoreInitializationOptions, VZFileHandleNetworkDeviceAttachment,
    VZFileHandleSerialPortAttachment, VZGenericPlatformConfiguration, VZLinuxBootLoader,
    VZLinuxRosettaAvailability, VZLinuxRosettaDirectoryShare, VZMACAddress, VZSharedDirectory,
    VZSingleDirectoryShare, VZVirtioBlockDeviceConfiguration,
    VZVirtioConsoleDeviceSerialPortConfiguration, VZVirtioEntropyDeviceConfiguration,
    VZVirtioFileSystemDeviceConfiguration, VZVirtioNetworkDeviceConfiguration,
    VZVirtioSocketDeviceConfiguration, VZVirtioTraditionalMemoryBalloonDeviceConfiguration,
    VZVirtualMachineConfiguration,
};
use tempfile::TempDir;

use super::{failure, identity};
use crate::engine::EnginePorts;

/// A configuration that the framework found valid.
pub(super) struct Configuration {
    pub(super) objects: Retained<VZVirtualMachineConfiguration>,
    /// Holds a variable store that is to be forgotten.
    pub(super) temporary: Option<TempDir>,
    /// What [`identity`] keeps of the machine; `None` on macOS 12, which has no identifiers.
    pub(super) identity: Option<Vec<u8>>,
}

/// Makes every object of the plan, for a machine that is new, or whose state was saved to `restore`.
pub(super) fn configure(
    plan: &VzPlan,
    ports: EnginePorts,
    restore: Option<&Path>,
) -> Result<Configuration, EngineFailure> {
    let mut temporary = None;
    let boot_loader = boot_loader(&plan.boot, &mut temporary)?;
    let disks = plan.disks.iter().map(disk).collect::<Result<Vec<_>, _>>()?;
    let mut shares: Vec<_> = plan.shares.iter().map(share).collect();
    if let Some(tag) = &plan.rosetta {
        shares.push(rosetta(tag)?);
    }
    let cpus = usize::try_from(plan.cpus).unwrap_or(usize::MAX);
    let (platform, identity) = platform(plan, restore)?;

    // SAFETY: every object is new and used on this thread alone, each setter is given an object of
    // the type that it documents, and what needs a newer macOS was checked against the host by
    // `VzPlan::check_host`.
    let objects = unsafe {
        let objects = VZVirtualMachineConfiguration::new();
        objects.setCPUCount(cpus);
        objects.setMemorySize(plan.memory_bytes);
        objects.setBootLoader(Some(&boot_loader));
        objects.setPlatform(&platform);
        objects.setStorageDevices(&array(disks));
        objects.setDirectorySharingDevices(&array(shares));
        let entropy = VZVirtioEntropyDeviceConfiguration::new();
        objects.setEntropyDevices(&array(vec![Retained::into_super(entropy)]));
        if plan.vsock {
            let vsock = VZVirtioSocketDeviceConfiguration::new();
            objects.setSocketDevices(&array(vec![Retained::into_super(vsock)]));
        }
        if plan.balloon {
            let balloon = VZVirtioTraditionalMemoryBalloonDeviceConfiguration::new();
            objects.setMemoryBalloonDevices(&array(vec![Retained::into_super(balloon)]));
        }
        objects
    };
    if let Some(console) = ports.console {
        add_console(&objects, console)?;
    }
    if let (Some(network), Some(socket)) = (&plan.network, ports.network) {
        add_network(&objects, network, socket)?;
    }
    // SAFETY: the configuration is complete.
    unsafe { objects.validateWithError() }.map_err(|error| failure(&error))?;
    Ok(Configuration {
        objects,
        temporary,
        identity,
    })
}

/// The platform, and what [`identity`] keeps of it.
fn platform(
    plan: &VzPlan,
    restore: Option<&Path>,
) -> Result<(Retained<VZGenericPlatformConfiguration>, Option<Vec<u8>>), EngineFailure> {
    // SAFETY: a new object.
    let platform = unsafe { VZGenericPlatformConfiguration::new() };
    if plan.nested_virtualization {
        // SAFETY: a setter that the host has: `VzPlan::check_host`.
        unsafe { platform.setNestedVirtualizationEnabled(true) };
    }
    let mut kept = None;
    if available!(macos = 13.0) {
        if let Some(state) = restore {
            let identifier = identity::read(state)?;
            // SAFETY: a setter, on a macOS that has it.
            unsafe { platform.setMachineIdentifier(&identifier) };
        }
        // SAFETY: a getter, on a macOS that has it.
        let identifier = unsafe { platform.machineIdentifier() };
        kept = Some(identity::bytes(&identifier));
    }
    Ok((platform, kept))
}

fn array<T: objc2::Message>(objects: Vec<Retained<T>>) -> Retained<NSArray<T>> {
    NSArray::from_retained_slice(&objects)
}

fn url(path: &Path) -> Retained<NSURL> {
    // The plan has only paths that are UTF-8.
    NSURL::fileURLWithPath(&NSString::from_str(&path.to_string_lossy()))
}

fn io_failure(what: &str, error: &io::Error) -> EngineFailure {
    EngineFailure::new(
        FailureKind::Framework,
        format!("{what}: {error}"),
        "check the limits of open files and the space in TMPDIR",
    )
}

/// A file handle that closes its descriptor when it goes.
fn file_handle(descriptor: OwnedFd) -> Retained<NSFileHandle> {
    NSFileHandle::initWithFileDescriptor_closeOnDealloc(
        NSFileHandle::alloc(),
        descriptor.into_raw_fd(),
        true,
    )
}

fn boot_loader(
    boot: &VzBoot,
    temporary: &mut Option<TempDir>,
) -> Result<Retained<VZBootLoader>, EngineFailure> {
    match boot {
        VzBoot::Linux {
            kernel,
            initramfs,
            command_line,
        } => {
            // SAFETY: a new object and its setters.
            let loader = unsafe {
                let loader =
                    VZLinuxBootLoader::initWithKernelURL(VZLinuxBootLoader::alloc(), &url(kernel));
                loader.setCommandLine(&NSString::from_str(command_line));
                if let Some(initramfs) = initramfs {
                    loader.setInitialRamdiskURL(Some(&url(initramfs)));
                }
                loader
            };
            Ok(Retained::into_super(loader))
        }
        VzBoot::Efi { store } => {
            let store = match store {
                VzVariableStore::Kept(path) => variable_store(path)?,
                VzVariableStore::Forgotten => {
                    let folder = TempDir::with_prefix("capsa-efi-")
                        .map_err(|error| io_failure("no folder for EFI variables", &error))?;
                    let store = variable_store(&folder.path().join("variables"))?;
                    *temporary = Some(folder);
                    store
                }
            };
            // SAFETY: a new object and its setter.
            let loader = unsafe {
                let loader = VZEFIBootLoader::new();
                loader.setVariableStore(Some(&store));
                loader
            };
            Ok(Retained::into_super(loader))
        }
    }
}

fn variable_store(path: &Path) -> Result<Retained<VZEFIVariableStore>, EngineFailure> {
    if path.exists() {
        // SAFETY: a new object for a file that is there.
        return Ok(unsafe {
            VZEFIVariableStore::initWithURL(VZEFIVariableStore::alloc(), &url(path))
        });
    }
    // SAFETY: a new object; without options, a file that has come into being meanwhile is an error.
    let made = unsafe {
        VZEFIVariableStore::initCreatingVariableStoreAtURL_options_error(
            VZEFIVariableStore::alloc(),
            &url(path),
            VZEFIVariableStoreInitializationOptions::empty(),
        )
    };
    made.map_err(|error| failure(&error))
}

fn disk(
    disk: &VzDisk,
) -> Result<Retained<objc2_virtualization::VZStorageDeviceConfiguration>, EngineFailure> {
    // SAFETY: new objects and their setters.
    unsafe {
        let attachment = VZDiskImageStorageDeviceAttachment::initWithURL_readOnly_error(
            VZDiskImageStorageDeviceAttachment::alloc(),
            &url(&disk.path),
            disk.read_only,
        )
        .map_err(|error| failure(&error))?;
        let device = VZVirtioBlockDeviceConfiguration::initWithAttachment(
            VZVirtioBlockDeviceConfiguration::alloc(),
            &attachment,
        );
        if let Some(identifier) = &disk.identifier {
            device.setBlockDeviceIdentifier(&NSString::from_str(identifier));
        }
        Ok(Retained::into_super(device))
    }
}

fn share(share: &VzShare) -> Retained<VZDirectorySharingDeviceConfiguration> {
    // SAFETY: new objects.
    let directory = unsafe {
        let directory = VZSharedDirectory::initWithURL_readOnly(
            VZSharedDirectory::alloc(),
            &url(&share.path),
            share.read_only,
        );
        VZSingleDirectoryShare::initWithDirectory(VZSingleDirectoryShare::alloc(), &directory)
    };
    file_system(&share.tag, directory.as_super())
}

fn file_system(
    tag: &str,
    share: &VZDirectoryShare,
) -> Retained<VZDirectorySharingDeviceConfiguration> {
    // SAFETY: a new object and its setter.
    let device = unsafe {
        let device = VZVirtioFileSystemDeviceConfiguration::initWithTag(
            VZVirtioFileSystemDeviceConfiguration::alloc(),
            &NSString::from_str(tag),
        );
        device.setShare(Some(share));
        device
    };
    Retained::into_super(device)
}

fn rosetta(tag: &str) -> Result<Retained<VZDirectorySharingDeviceConfiguration>, EngineFailure> {
    // SAFETY: a class method without arguments.
    let availability = unsafe { VZLinuxRosettaDirectoryShare::availability() };
    if availability != VZLinuxRosettaAvailability::Installed {
        return Err(EngineFailure::new(
            FailureKind::Unavailable,
            "Rosetta is not installed",
            "install it: softwareupdate --install-rosetta",
        ));
    }
    // SAFETY: a new object.
    let share = unsafe {
        VZLinuxRosettaDirectoryShare::initWithError(VZLinuxRosettaDirectoryShare::alloc())
    };
    let share = share.map_err(|error| failure(&error))?;
    Ok(file_system(tag, share.as_super()))
}

fn add_console(
    objects: &VZVirtualMachineConfiguration,
    socket: OwnedFd,
) -> Result<(), EngineFailure> {
    let reading = socket
        .try_clone()
        .map_err(|error| io_failure("the console's socket", &error))?;
    // SAFETY: new objects and their setters.
    unsafe {
        let attachment =
            VZFileHandleSerialPortAttachment::initWithFileHandleForReading_fileHandleForWriting(
                VZFileHandleSerialPortAttachment::alloc(),
                Some(&file_handle(reading)),
                Some(&file_handle(socket)),
            );
        let console = VZVirtioConsoleDeviceSerialPortConfiguration::new();
        console.setAttachment(Some(&attachment));
        objects.setSerialPorts(&array(vec![Retained::into_super(console)]));
    }
    Ok(())
}

fn add_network(
    objects: &VZVirtualMachineConfiguration,
    network: &VzNetwork,
    socket: OwnedFd,
) -> Result<(), EngineFailure> {
    // SAFETY: new objects and their setters; the descriptor is a connected datagram socket.
    unsafe {
        let attachment = VZFileHandleNetworkDeviceAttachment::initWithFileHandle(
            VZFileHandleNetworkDeviceAttachment::alloc(),
            &file_handle(socket),
        );
        if let Some(mtu) = network.mtu {
            attachment.setMaximumTransmissionUnit(isize::try_from(mtu).unwrap_or(isize::MAX));
        }
        let device = VZVirtioNetworkDeviceConfiguration::new();
        device.setAttachment(Some(&attachment));
        if let Some(mac) = network.mac {
            let text = NSString::from_str(&mac.to_string());
            let Some(address) = VZMACAddress::initWithString(VZMACAddress::alloc(), &text) else {
                return Err(EngineFailure::new(
                    FailureKind::Framework,
                    format!("the framework does not take the address {mac}"),
                    "use a locally administered address, such as 52:54:00:12:34:56",
                ));
            };
            device.setMACAddress(&address);
        }
        objects.setNetworkDevices(&array(vec![Retained::into_super(device)]));
    }
    Ok(())
}

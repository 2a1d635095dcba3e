use capsa_core::{BackendCapabilities, BootKinds, ConsoleKinds, DiskFormat, MAX_CPUS};

/// What vfkit 0.6 can honour. It can give a guest a balloon, but has no request to fill it. Nested virtualization and Rosetta also depend on the Mac; vfkit's own
/// refusal is then the error of the start.
pub fn capabilities() -> BackendCapabilities {
    let mut can = BackendCapabilities::default();
    can.boot = BootKinds {
        linux: true,
        uefi: true,
    };
    can.max_cpus = MAX_CPUS;
    can.console = ConsoleKinds {
        serial: false,
        virtio: true,
    };
    can.power_button = true;
    can.pause = true;
    can.disk_formats = vec![DiskFormat::Raw];
    can.shares = true;
    can.network = true;
    can.vsock = true;
    can.nested_virtualization = true;
    can.rosetta = true;
    can
}

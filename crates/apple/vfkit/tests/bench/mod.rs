//! The backend with a stand-in for vfkit: what the tests of whole machines start from.
#![allow(dead_code, reason = "not every test program uses all of it")]

use std::fs;
use std::path::PathBuf;

use capsa_apple_vfkit::VfkitBackend;
use capsa_core::{
    BootSpec, ConsoleInput, ConsoleIo, Error, HypervisorBackend, LaunchedVm, LinuxBoot, VmExit,
    VmSpec,
};
use tempfile::TempDir;
use tokio::io::AsyncReadExt;

const STAND_IN: &str = env!("CARGO_BIN_EXE_stand-in-vfkit");

/// The backend, and files that it takes for a kernel and an initramfs.
pub(crate) struct Bench {
    pub(crate) files: TempDir,
    pub(crate) backend: VfkitBackend,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let files = TempDir::new().unwrap();
        let mut kernel = vec![0; 1024];
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        if cfg!(target_arch = "aarch64") {
            kernel = vec![0; 1024];
            kernel[56..60].copy_from_slice(b"ARM\x64");
        }
        fs::write(files.path().join("kernel"), kernel).unwrap();
        fs::write(files.path().join("initramfs"), b"070701").unwrap();
        Self {
            files,
            backend: VfkitBackend::with_program(STAND_IN),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    pub(crate) fn spec(&self, behaviour: &str) -> VmSpec {
        let mut spec = VmSpec::new(BootSpec::Linux(LinuxBoot {
            kernel: self.path("kernel"),
            initramfs: Some(self.path("initramfs")),
            command_line: format!("console=hvc0 stand-in={behaviour}"),
        }));
        spec.console.input = ConsoleInput::Virtio;
        spec
    }

    pub(crate) async fn launch(&self, spec: &VmSpec) -> LaunchedVm {
        self.backend.launch(spec).await.unwrap()
    }

    pub(crate) async fn refused(&self, spec: &VmSpec) -> Error {
        match self.backend.launch(spec).await {
            Err(error) => error,
            Ok(_) => panic!("it started"),
        }
    }
}

/// Reads until `text` has come, or the output ends.
pub(crate) async fn read_until(console: &mut ConsoleIo, text: &str) -> String {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&all).contains(text) {
        let count = console.output.read(&mut buffer).await.unwrap();
        if count == 0 {
            panic!("{text:?} did not come: {}", String::from_utf8_lossy(&all));
        }
        all.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8(all).unwrap()
}

/// Waits for the end.
pub(crate) async fn exit(vm: &LaunchedVm) -> VmExit {
    let mut status = vm.handle.status();
    let status = status.wait_for(|status| status.exit().is_some()).await;
    status.unwrap().exit().unwrap().clone()
}

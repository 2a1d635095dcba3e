//! A machine with a device of every kind, whose devices run with every layer of confinement: in the
//! monitor on KVM, in a process of their own on QEMU.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File};
use std::process::Command;

use capsa::network::Interface;
use capsa::test_utils::{self, Shell};
use capsa::{
    BackendKind, DiskAccess, DiskSpec, Isolation, MemorySize, ShareAccess, ShareSpec, VmExit,
    VsockSpec,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn status_of(task: &str, field: &str) -> String {
    let status = fs::read_to_string(format!("{task}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field));
    line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

fn tasks_of(process: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks
        .map(|task| task.unwrap().path().to_str().unwrap().to_owned())
        .collect()
}

fn name_of(task: &str) -> String {
    fs::read_to_string(format!("{task}/comm")).unwrap()
}

/// The process that runs the devices of the only machine.
fn device_process(shell: &Shell, backend: BackendKind) -> u32 {
    if backend == BackendKind::Kvm {
        return shell.vm.process_id().unwrap();
    }
    let threads = fs::read_dir("/proc/self/task").unwrap();
    let children = threads.flat_map(|thread| {
        let children = fs::read_to_string(thread.unwrap().path().join("children")).unwrap();
        let numbers = children
            .split_whitespace()
            .map(|word| word.parse().unwrap());
        numbers.collect::<Vec<u32>>()
    });
    let serves_qemu = |process: &u32| {
        let names: Vec<String> = tasks_of(*process)
            .iter()
            .map(|task| name_of(task))
            .collect();
        let serves = |name: &String| name.starts_with("qemu-") && !name.starts_with("qemu-system");
        names.iter().any(serves)
    };
    let found: Vec<u32> = children.filter(serves_qemu).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0]
}

#[tokio::test]
async fn every_device_works_in_a_process_that_has_nothing_else() {
    // Arrange
    let backend = test_utils::backend().await.backend;
    let isolation = match backend {
        BackendKind::Kvm => Isolation::Required,
        // QEMU itself has its own filter only.
        _ => Isolation::BestEffort,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["raw", "base"] {
        File::create(path(name)).unwrap().set_len(32 << 20).unwrap();
    }
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path("qcow2"))
        .arg("32M")
        .status();
    assert!(made.unwrap().success());
    for name in ["read", "write"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("read").join("file"), "from the host\n").unwrap();
    let disk = |name: &str, access| DiskSpec {
        access,
        ..DiskSpec::new(path(name))
    };
    let share = |name: &str, access| ShareSpec {
        access,
        ..ShareSpec::new(path(name), format!("/{name}"))
    };
    let builder = test_utils::vm()
        .await
        .isolation(isolation)
        .disk(disk("raw", DiskAccess::ReadWrite))
        .disk(disk("qcow2", DiskAccess::ReadWrite))
        .disk(disk("base", DiskAccess::Overlay { layer: None }))
        .share(share("read", ShareAccess::ReadOnly))
        .share(share("write", ShareAccess::ReadWrite))
        .vsock(VsockSpec::default())
        .network(Interface::user_nat())
        .balloon(true);
    let mut shell = Shell::start(builder).await;
    let process = device_process(&shell, backend);

    // Act
    for disk in ["vda", "vdb", "vdc"] {
        shell
            .run(&format!(
                "mke2fs -q /dev/{disk} && mkdir /{disk} && mount -t ext4 /dev/{disk} /{disk} && \
                 dd if=/dev/urandom of=/{disk}/f bs=64k count=64 2>/dev/null && sync && \
                 fstrim /{disk} && umount /{disk} && mount -t ext4 /dev/{disk} /{disk} && md5sum /{disk}/f"
            ))
            .await;
    }
    let read = shell.run("cat /read/file").await;
    shell
        .run(
            "cd /write && seq 1000 > a && ln a b && ln -s a c && mv b d && chmod 600 d && touch -d '2020-01-01' d && \
             mkdir e && mknod f p && rm -r e && cp a g && truncate -s 10 g && cat g >> a && \
             ls -la && stat -f . && df . && sync && cd /",
        )
        .await;
    let mut listener = shell.vm.vsock_listen(5000).await.unwrap();
    shell
        .send("echo hello | vsock connect 5000 > /tmp/answer")
        .await;
    let mut called = listener.accept().await.unwrap();
    let mut heard = String::new();
    called.read_to_string(&mut heard).await.unwrap();
    called.write_all(b"and back").await.unwrap();
    called.shutdown().await.unwrap();
    let answer = shell.run("cat /tmp/answer").await;
    let gateway = shell.run("ping -c 1 10.0.2.1 | grep -c 'bytes from'").await;
    shell
        .vm
        .set_balloon_target(MemorySize::mib(32))
        .await
        .unwrap();
    shell.vm.memory_report().await.unwrap();
    shell.vm.pause().await.unwrap();
    shell.vm.resume().await.unwrap();
    for task in tasks_of(process) {
        let name = name_of(&task);
        assert_eq!(status_of(&task, "Seccomp:"), "2", "{name}");
        assert_eq!(status_of(&task, "NoNewPrivs:"), "1", "{name}");
    }
    let root = fs::read_dir(format!("/proc/{process}/root")).unwrap();
    assert_eq!(root.count(), 0);
    shell.send("poweroff -f").await;
    let exit = shell.vm.wait().await;

    // Assert
    assert_eq!(read, "from the host");
    assert_eq!((heard.as_str(), answer.as_str()), ("hello\n", "and back"));
    assert_eq!(gateway, "1");
    assert_eq!(exit, VmExit::PoweredOff);
    assert_eq!(fs::read_dir(path("write")).unwrap().count(), 5);
}

//! A machine with a device of every kind, whose monitor has every layer of confinement.
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
    DiskAccess, DiskSpec, Isolation, MemorySize, ShareAccess, ShareSpec, VmExit, VsockSpec,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn status_of(task: &str, field: &str) -> String {
    let status = fs::read_to_string(format!("{task}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field));
    line.unwrap().split_whitespace().nth(1).unwrap().to_owned()
}

#[tokio::test]
async fn every_device_works_in_a_monitor_that_has_nothing_else() {
    // Arrange
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
        .isolation(Isolation::Required)
        .disk(disk("raw", DiskAccess::ReadWrite))
        .disk(disk("qcow2", DiskAccess::ReadWrite))
        .disk(disk("base", DiskAccess::Overlay { layer: None }))
        .share(share("read", ShareAccess::ReadOnly))
        .share(share("write", ShareAccess::ReadWrite))
        .vsock(VsockSpec::default())
        .network(Interface::user_nat())
        .balloon(true);
    let mut shell = Shell::start(builder).await;
    let process = format!("/proc/{}", shell.vm.process_id().unwrap());

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
    for task in fs::read_dir(format!("{process}/task")).unwrap() {
        let task = task.unwrap().path();
        let task = task.to_str().unwrap();
        let name = fs::read_to_string(format!("{task}/comm")).unwrap();
        assert_eq!(status_of(task, "Seccomp:"), "2", "{name}");
        assert_eq!(status_of(task, "NoNewPrivs:"), "1", "{name}");
    }
    shell.send("poweroff -f").await;
    let exit = shell.vm.wait().await;

    // Assert
    assert_eq!(read, "from the host");
    assert_eq!((heard.as_str(), answer.as_str()), ("hello\n", "and back"));
    assert_eq!(gateway, "1");
    assert_eq!(exit, VmExit::PoweredOff);
    assert_eq!(fs::read_dir(path("write")).unwrap().count(), 5);
}

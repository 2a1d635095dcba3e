//! Disks of every format and access, as a guest finds them.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use capsa::test_utils::{self, Shell};
use capsa::{
    DiskAccess, DiskFormat, DiskSpec, Error, LinuxVmBuilder, MemorySize, RateLimit, VmExit,
};

const MIB: usize = 1 << 20;

/// A raw image of `mib` MiB, every byte of it `fill`.
fn raw(folder: &Path, name: &str, mib: usize, fill: u8) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, vec![fill; mib * MIB]).unwrap();
    path
}

fn disk(path: &Path, access: DiskAccess) -> DiskSpec {
    DiskSpec {
        access,
        ..DiskSpec::new(path)
    }
}

fn on_the_host(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `script` in a guest, which powers off after it; gives what it printed.
async fn run(builder: LinuxVmBuilder, script: &str) -> String {
    let mut shell = Shell::start(builder).await;
    let output = shell.run(script).await;
    shell.send("poweroff -f").await;
    assert_eq!(shell.vm.wait().await, VmExit::PoweredOff);
    output
}

#[tokio::test]
async fn disks_come_in_order_with_their_serials_sizes_and_access() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let first = raw(folder, "first", 3, b'a');
    let second = raw(folder, "second", 2, b'b');
    let third = raw(folder, "third", 1, b'c');
    let serial = |path: &Path, serial: &str, access| DiskSpec {
        serial: Some(serial.to_owned()),
        ..disk(path, access)
    };
    let builder = test_utils::vm()
        .await
        .disk(serial(
            &first,
            "twenty-characters-xx",
            DiskAccess::ReadWrite,
        ))
        .disk(serial(&second, "two", DiskAccess::ReadOnly))
        .disk(disk(&third, DiskAccess::Overlay { layer: None }));

    let told = run(
        builder,
        "for d in vda vdb vdc; do echo \"$d $(cat /sys/block/$d/serial) $(cat /sys/block/$d/size) \
         $(cat /sys/block/$d/ro) $(head -c 4 /dev/$d)\"; done; \
         ! dd if=/dev/zero of=/dev/vdb bs=4096 count=1 conv=fsync 2>/dev/null && \
         yes A | tr -d '\\n' | dd of=/dev/vda bs=65536 count=1 seek=2 conv=fsync,notrunc iflag=fullblock 2>/dev/null && \
         yes C | tr -d '\\n' | dd of=/dev/vdc bs=65536 count=1 conv=fsync,notrunc iflag=fullblock 2>/dev/null && \
         echo 3 > /proc/sys/vm/drop_caches && head -c 4 /dev/vdc",
    )
    .await;

    let lines: Vec<_> = told.lines().collect();
    assert_eq!(
        lines,
        [
            "vda twenty-characters-xx 6144 0 aaaa",
            "vdb two 4096 1 bbbb",
            "vdc  2048 0 cccc",
            "CCCC"
        ]
    );
    let mut expected = vec![b'a'; 3 * MIB];
    expected[2 * 65536..3 * 65536].fill(b'A');
    assert!(fs::read(&first).unwrap() == expected, "the written disk");
    assert!(
        fs::read(&second).unwrap() == vec![b'b'; 2 * MIB],
        "read-only"
    );
    assert!(fs::read(&third).unwrap() == vec![b'c'; MIB], "the base");
}

#[tokio::test]
async fn a_file_system_written_by_the_guest_is_clean_on_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ext4");
    File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let image = path.to_str().unwrap();
    on_the_host("/usr/sbin/mkfs.ext4", &["-q", image]);
    let builder = test_utils::vm().await.disk(DiskSpec::new(&path));

    run(
        builder,
        "mkdir /mnt && mount -t ext4 /dev/vda /mnt && mkdir /mnt/d && \
         for i in $(seq 50); do seq $i 2000 > /mnt/d/$i; done && \
         rm /mnt/d/7 && mv /mnt/d/8 /mnt/eight && umount /mnt && \
         mount -t ext4 -o ro /dev/vda /mnt && seq 8 2000 | cmp - /mnt/eight && \
         test \"$(ls /mnt/d | wc -l)\" = 48 && umount /mnt",
    )
    .await;

    on_the_host("/usr/sbin/e2fsck", &["-fn", image]);
}

#[tokio::test]
async fn qcow2_images_and_kept_layers_hold_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let base = raw(folder, "base", 8, b'x');
    let qcow2 = folder.join("image");
    let image = qcow2.to_str().unwrap();
    on_the_host("qemu-img", &["create", "-q", "-f", "qcow2", image, "8M"]);
    let layer = folder.join("layer");
    let with_disks = async || {
        let kept = DiskAccess::Overlay {
            layer: Some(layer.clone()),
        };
        test_utils::vm()
            .await
            .disk(DiskSpec::new(&qcow2))
            .disk(disk(&base, kept))
    };

    run(
        with_disks().await,
        "seq 100000 | dd of=/dev/vda bs=4096 conv=fsync 2>/dev/null && \
         seq 100000 | dd of=/dev/vdb bs=4096 seek=3 conv=fsync 2>/dev/null",
    )
    .await;
    let sums = run(
        with_disks().await,
        "seq 100000 > /tmp/n; head -c $(stat -c %s /tmp/n) /dev/vda | cmp - /tmp/n && \
         dd if=/dev/vdb bs=4096 skip=3 2>/dev/null | head -c $(stat -c %s /tmp/n) | cmp - /tmp/n && \
         head -c 5 /dev/vdb",
    )
    .await;

    assert_eq!(sums, "xxxxx");
    assert!(fs::read(&base).unwrap() == vec![b'x'; 8 * MIB], "the base");
    for image in [&qcow2, &layer] {
        on_the_host("qemu-img", &["check", "-q", image.to_str().unwrap()]);
    }
}

#[tokio::test]
async fn a_disk_whose_speed_is_limited_is_no_faster() {
    let folder = tempfile::tempdir().unwrap();
    let path = raw(folder.path(), "disk", 4, b'x');
    let mut limited = DiskSpec::new(&path);
    limited.limits.bytes = Some(RateLimit::per_second(MIB as u64));
    let mut shell = Shell::start(test_utils::vm().await.disk(limited)).await;

    let begun = Instant::now();
    shell.run("cat /dev/vda > /dev/null").await;

    // Of four seconds, the first may be free, and a request may leave a debt of its own size.
    assert!(begun.elapsed() > Duration::from_secs(2), "{begun:?}");
}

/// A command that returns when the guest sees `disk` with so many MiB.
fn until_seen(disk: &str, mib: usize) -> String {
    format!(
        "until test $(cat /sys/block/{disk}/size) = {}; do sleep 0.05; done",
        mib * MIB / 512
    )
}

/// A command that writes `text` into the last sector of `disk`, which has so many MiB.
fn write_at_the_end(disk: &str, mib: usize, text: &str) -> String {
    format!(
        "echo {text} | dd of=/dev/{disk} bs=512 seek={} conv=fsync,notrunc 2>/dev/null",
        mib * MIB / 512 - 1
    )
}

#[tokio::test]
async fn another_size_of_a_disk_is_seen_by_the_running_guest() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let first = raw(folder, "raw", 1, b'r');
    let qcow2 = folder.join("image");
    let image = qcow2.to_str().unwrap();
    on_the_host("qemu-img", &["create", "-q", "-f", "qcow2", image, "8M"]);
    let read_only = raw(folder, "read-only", 1, b'o');
    let builder = test_utils::vm()
        .await
        .disk(DiskSpec::new(&first))
        .disk(DiskSpec::new(&qcow2))
        .disk(disk(&read_only, DiskAccess::ReadOnly));
    let mut shell = Shell::start(builder).await;
    if !shell.vm.capabilities().disk_resize {
        let grown = shell.vm.grow_disk(0, MemorySize::mib(3)).await;
        let refreshed = shell.vm.refresh_disk(0).await;
        assert!(matches!(grown, Err(Error::Unsupported { .. })));
        assert!(matches!(refreshed, Err(Error::Unsupported { .. })));
        assert_eq!(fs::metadata(&first).unwrap().len(), MIB as u64);
        return;
    }

    let before = shell.run("cat /sys/block/vd[abc]/size").await;
    shell.vm.grow_disk(0, MemorySize::mib(3)).await.unwrap();
    shell.vm.grow_disk(1, MemorySize::mib(64)).await.unwrap();
    shell.run(&until_seen("vda", 3)).await;
    shell.run(&until_seen("vdb", 64)).await;
    shell.run(&write_at_the_end("vda", 3, "raw-end")).await;
    shell.run(&write_at_the_end("vdb", 64, "image-end")).await;
    for (path, mib) in [(&first, 5), (&read_only, 4)] {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(mib * MIB as u64).unwrap();
    }
    let refreshed = [
        shell.vm.refresh_disk(0).await.unwrap(),
        shell.vm.refresh_disk(2).await.unwrap(),
    ];
    shell.run(&until_seen("vda", 5)).await;
    shell.run(&until_seen("vdc", 4)).await;
    shell.run(&write_at_the_end("vda", 5, "file-end")).await;
    let refused = [
        shell.vm.grow_disk(0, MemorySize::mib(4)).await,
        shell
            .vm
            .grow_disk(1, MemorySize::bytes((65 << 20) + 1))
            .await,
        shell.vm.grow_disk(2, MemorySize::mib(8)).await,
        shell.vm.grow_disk(3, MemorySize::mib(8)).await,
    ];
    let after = shell.run("cat /sys/block/vd[abc]/size").await;
    shell.send("poweroff -f").await;
    assert_eq!(shell.vm.wait().await, VmExit::PoweredOff);

    assert_eq!(before, "2048\n16384\n2048");
    assert_eq!(refreshed, [MemorySize::mib(5), MemorySize::mib(4)]);
    for (refused, reason) in refused.into_iter().zip([
        "cannot shrink",
        "multiple of 512",
        "disk is read-only",
        "the VM has 3",
    ]) {
        let text = refused.as_ref().unwrap_err().to_string();
        assert!(
            matches!(refused, Err(Error::InvalidSetting { .. })),
            "{text}"
        );
        assert!(text.contains(reason), "{text}");
    }
    assert_eq!(after, "10240\n131072\n8192");
    on_the_host("qemu-img", &["check", "-q", image]);
    let converted = folder.join("converted");
    let arguments = ["convert", "-O", "raw", image, converted.to_str().unwrap()];
    on_the_host("qemu-img", &arguments);
    for (path, mib, text) in [
        (&first, 3, "raw-end\n"),
        (&first, 5, "file-end\n"),
        (&converted, 64, "image-end\n"),
    ] {
        let mut found = vec![0; text.len()];
        let file = File::open(path).unwrap();
        file.read_exact_at(&mut found, mib * MIB as u64 - 512)
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&found), text);
    }
}

#[tokio::test]
async fn what_a_guest_wrote_to_an_image_and_never_flushed_is_there_after_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let qcow2 = folder.path().join("image");
    let image = qcow2.to_str().unwrap();
    on_the_host("qemu-img", &["create", "-q", "-f", "qcow2", image, "8M"]);
    let builder = test_utils::vm().await.disk(DiskSpec::new(&qcow2));

    // The kernel writes its cache out when the last user closes the disk, and does not flush.
    run(
        builder,
        "yes w | tr -d '\\n' | dd of=/dev/vda bs=65536 count=20 iflag=fullblock 2>/dev/null",
    )
    .await;

    on_the_host("qemu-img", &["check", "-q", image]);
    let converted = folder.path().join("converted");
    let arguments = ["convert", "-O", "raw", image, converted.to_str().unwrap()];
    on_the_host("qemu-img", &arguments);
    let content = fs::read(&converted).unwrap();
    assert!(content[..20 * 65536] == vec![b'w'; 20 * 65536]);
}

/// Names the directory of the file system that the test below fills.
const FULL: &str = "CAPSA_TEST_FULL";

/// The test runs itself again in namespaces in which anybody may mount a file system that is soon full.
#[tokio::test]
async fn a_host_without_space_fails_the_writes_that_need_some_and_no_other() {
    let Some(folder) = std::env::var_os(FULL) else {
        let folder = tempfile::tempdir().unwrap();
        let again = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("a_host_without_space_fails_the_writes_that_need_some_and_no_other")
            .env(FULL, folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&again.stdout);
        let errors = String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success(), "{said}{errors}");
        assert!(said.contains("1 passed"), "{said}");
        return;
    };
    let folder = Path::new(&folder);
    let place = folder.to_str().unwrap();
    on_the_host("mount", &["-t", "tmpfs", "-o", "size=3m", "tmpfs", place]);
    let path = folder.join("disk");
    let disk = File::create(&path).unwrap();
    disk.set_len(16 * MIB as u64).unwrap();
    let mut spec = DiskSpec::new(&path);
    spec.format = Some(DiskFormat::Raw);
    let mut shell = Shell::start(test_utils::vm().await.disk(spec)).await;
    let write = |letter: char, count: usize, at: usize| {
        format!(
            "tr '\\0' {letter} < /dev/zero | dd of=/dev/vda bs=64k count={count} seek={at} \
             iflag=fullblock conv=fsync,notrunc 2> /tmp/said"
        )
    };

    shell.run(&write('x', 16, 0)).await;
    let refused = format!("! {} && cat /tmp/said", write('z', 160, 16));
    let said = shell.run(&refused).await;
    // There is room for what has its place already.
    shell.run(&write('y', 4, 0)).await;

    assert!(said.contains("Input/output error"), "{said}");
    let mut expected = vec![b'y'; 4 << 16];
    expected.resize(MIB, b'x');
    let content = fs::read(&path).unwrap();
    assert!(content[..MIB] == expected);
}

#[tokio::test]
async fn disks_that_cannot_be_used_are_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let used = raw(folder, "used", 1, 0);
    let vm = test_utils::vm().await.disk(DiskSpec::new(&used));
    let vm = vm.start().await.unwrap();
    let raw = raw(folder, "raw", 1, b'r');
    let not_qcow2 = DiskSpec {
        format: Some(DiskFormat::Qcow2),
        ..DiskSpec::new(&raw)
    };
    let based = folder.join("based");
    let image = based.to_str().unwrap();
    let arguments = [
        "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "raw", image,
    ];
    on_the_host("qemu-img", &arguments);
    let corrupt = folder.join("corrupt");
    fs::copy(&based, &corrupt).unwrap();
    let header = File::options().write(true).open(&corrupt).unwrap();
    header.write_all_at(&[0xff; 4], 20).unwrap();

    for (disk, reason) in [
        (DiskSpec::new(folder.join("missing")), "no such file"),
        (DiskSpec::new(folder), "directory"),
        (DiskSpec::new(&used), "in use"),
        (disk(&used, DiskAccess::ReadOnly), "in use"),
        (not_qcow2, "no qcow2 image"),
        (DiskSpec::new(&based), "not allowed"),
        (DiskSpec::new(&corrupt), "corrupt"),
    ] {
        let error = test_utils::vm()
            .await
            .disk(disk)
            .build()
            .await
            .err()
            .unwrap();
        let text = error.to_string();
        assert!(matches!(error, Error::File { .. }), "{text}");
        assert!(text.contains(reason), "{text}");
    }
    vm.kill().await.unwrap();
    let again = test_utils::vm().await.disk(DiskSpec::new(&used));
    assert!(again.build().await.is_ok());
}

//! Real checkers on disks of every format: `cargo xtask soak --program soak_disks`; results are in
//! docs/soak.md.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use capsa::test_utils::{self, LIMIT, Shell};
use capsa::{
    DiskAccess, DiskFormat, DiskSpec, LinuxVmBuilder, Pattern, ReadFrom, ShareSpec, VmExit,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncReadExt;

/// Ends what hangs; the lab's guests are slow.
const LONG: Duration = Duration::from_secs(40 * 60);
/// What fio writes in order, at the beginning of the disk.
const IN_ORDER_MIB: u64 = 128;
/// What it writes in pieces all over, behind that.
const AT_RANDOM_MIB: u64 = 32;
/// What it leaves alone, behind both.
const UNTOUCHED_MIB: u64 = 16;
const DISK_MIB: u64 = IN_ORDER_MIB + AT_RANDOM_MIB + UNTOUCHED_MIB;
/// How often the power is cut; another with `CAPSA_SOAK_ROUNDS`.
const ROUNDS: u64 = 50;
/// Files that are synced before the power is cut, at most.
const MOST_SYNCED: u64 = 40;

fn host(program: &str, arguments: &[&str]) -> String {
    let (status, output) = host_status(program, arguments);
    assert_eq!(status, 0, "{program} {arguments:?}: {output}");
    output
}

/// The status and both outputs of a program of the host.
fn host_status(program: &str, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    (output.status.code().unwrap(), told)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A guest in whose `/host` this machine's programs run, and `/dev/vda` is the disk.
async fn with_programs(disk: DiskSpec) -> Shell {
    let builder = test_utils::vm()
        .await
        .memory_mib(512)
        .disk(disk)
        .share(ShareSpec::new("/usr", "/host/usr"));
    let mut shell = Shell::start(builder).await;
    shell
        .run(
            "cd /host && ln -s usr/bin usr/sbin usr/lib usr/lib64 . && mkdir dev proc sys tmp && \
             for d in dev proc sys; do mount -o bind /$d $d; done",
        )
        .await;
    shell
}

async fn power_off(mut shell: Shell) {
    shell.send("poweroff -f").await;
    assert_eq!(shell.vm.wait().await, VmExit::PoweredOff);
}

/// Has fio write and read back, or, with `--verify_only`, only read what another run has written.
async fn fio(shell: &mut Shell, more: &str) {
    let common = "--filename=/dev/vda --ioengine=libaio --iodepth=16 --direct=1 --thread \
                  --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1";
    for job in [
        format!("--name=order --rw=write --bs=64k --size={IN_ORDER_MIB}m --fsync=64"),
        format!(
            "--name=random --rw=randwrite --bs=4k --offset={IN_ORDER_MIB}m \
             --size={AT_RANDOM_MIB}m --fsync=64"
        ),
    ] {
        let command = format!(
            "cd / && HOME=/tmp chroot /host fio {common} {job} {more} --output-format=terse"
        );
        let begun = Instant::now();
        let told = shell.run_within(LONG, &command).await;
        // Of a terse line: the version, name, group, error; KiB read and written are 6 and 47.
        let line = told.lines().find(|line| line.starts_with("3;"));
        let line = line.unwrap_or_else(|| panic!("{told}"));
        let fields: Vec<_> = line.split(';').collect();
        let number = |index: usize| fields[index].parse::<u64>().unwrap();
        let size = if fields[2] == "order" {
            IN_ORDER_MIB
        } else {
            AT_RANDOM_MIB
        };
        println!(
            "  {} {more}: {} KiB written, {} KiB verified in {:.0} s",
            fields[2],
            number(46),
            number(5),
            begun.elapsed().as_secs_f64()
        );
        assert_eq!(fields[4], "0", "{told}");
        assert_eq!(number(5), size << 10, "verified: {told}");
        if more.is_empty() {
            assert_eq!(number(46), size << 10, "written: {told}");
        }
    }
}

/// In one machine it is written and read back, in the next one only read.
async fn written_is_there_at_once_and_in_the_next_machine(name: &str, disk: &DiskSpec) {
    println!("{name}:");
    let mut shell = with_programs(disk.clone()).await;
    fio(&mut shell, "").await;
    power_off(shell).await;
    let mut shell = with_programs(disk.clone()).await;
    fio(&mut shell, "--verify_only").await;
    power_off(shell).await;
}

/// Numbers that look random and are the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn random_image(path: &Path, mib: u64) {
    let mut random = Random(7);
    let mut file = BufWriter::new(File::create(path).unwrap());
    for _ in 0..mib << 17 {
        file.write_all(&random.next().to_le_bytes()).unwrap();
    }
    file.flush().unwrap();
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn fio_finds_on_a_raw_disk_what_it_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("raw");
    let file = File::create(&path).unwrap();
    file.set_len(DISK_MIB << 20).unwrap();

    written_is_there_at_once_and_in_the_next_machine("raw", &DiskSpec::new(&path)).await;

    assert_eq!(file.metadata().unwrap().len(), DISK_MIB << 20);
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn fio_finds_on_a_qcow2_disk_what_it_wrote_and_the_image_is_sound() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("qcow2");
    let size = format!("{DISK_MIB}M");
    host(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", text(&path), &size],
    );

    written_is_there_at_once_and_in_the_next_machine("qcow2", &DiskSpec::new(&path)).await;

    println!("{}", host("qemu-img", &["check", text(&path)]));
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn fio_finds_on_a_kept_overlay_what_it_wrote_and_the_base_is_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let (base, before) = (folder.path().join("base"), folder.path().join("before"));
    let layer = folder.path().join("layer");
    random_image(&base, DISK_MIB);
    fs::copy(&base, &before).unwrap();
    let disk = DiskSpec {
        access: DiskAccess::Overlay {
            layer: Some(layer.clone()),
        },
        ..DiskSpec::new(&base)
    };

    written_is_there_at_once_and_in_the_next_machine("overlay", &disk).await;
    let builder = test_utils::vm().await.disk(disk);
    let mut shell = Shell::start(builder).await;
    let skip = IN_ORDER_MIB + AT_RANDOM_MIB;
    let untouched = shell
        .run_within(
            LONG,
            &format!("dd if=/dev/vda bs=1M skip={skip} 2>/dev/null | md5sum"),
        )
        .await;
    power_off(shell).await;

    println!("{}", host("qemu-img", &["check", text(&layer)]));
    host("cmp", &[text(&base), text(&before)]);
    let tail = format!("tail -c {} {} | md5sum", UNTOUCHED_MIB << 20, text(&before));
    assert_eq!(untouched, host("sh", &["-c", &tail]).trim());
}

/// What the file of a number holds: lines from that number on, as many as it says.
fn content_of(number: u64) -> String {
    let mut content = String::new();
    for line in number..=number + number * 911 % 9000 {
        writeln!(content, "{line}").unwrap();
    }
    content
}

/// Three writers that tell each file that is on the disk, and one that never syncs.
const WRITERS: &str = "mkdir /mnt && mount -t ext4 /dev/vda /mnt && mkdir /mnt/files && sync && \
    for w in 0 1 2; do ( n=$w; while seq $n $((n + n * 911 % 9000)) | \
        dd of=/mnt/files/$n bs=64k conv=fsync 2>/dev/null; do \
        echo \"synced $n\"; n=$((n + 3)); done ) & done; \
    ( while :; do mkdir /mnt/a && for j in 1 2 3 4 5 6 7 8; do echo $j > /mnt/a/$j; done; \
        mv /mnt/a /mnt/b; rm -r /mnt/b; done ) &";

/// What ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// The machine, by its handle.
    Machine,
    /// Each process of it, a disk's device without a chance to write down what it holds.
    Everything,
}

fn kill_own_children() {
    let own = std::process::id();
    let mut killed = 0;
    for entry in fs::read_dir("/proc").unwrap() {
        let name = entry.unwrap().file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
        if parent.is_some_and(|parent| parent.trim() == own.to_string()) {
            kill_process(Pid::from_raw(id).unwrap(), Signal::KILL).unwrap();
            killed += 1;
        }
    }
    assert!(killed > 0);
}

/// Runs [`WRITERS`] until the power is cut; the numbers of the files that were told.
async fn told_until_the_power_is_cut(
    builder: LinuxVmBuilder,
    cut: Cut,
    random: &mut Random,
) -> BTreeSet<u64> {
    let mut shell = Shell::start(builder).await;
    let mut told = shell.vm.console().unwrap().reader(ReadFrom::Start);
    shell.send(WRITERS).await;
    for _ in 0..=random.below(MOST_SYNCED) {
        let line = Pattern::regex(r"synced \d+\r?\n").unwrap();
        let waited = shell.console.wait_for(line, LIMIT).await;
        waited.unwrap_or_else(|error| panic!("{error}"));
    }
    // Not to wait for anything: so that it is any moment of the next file.
    tokio::time::sleep(Duration::from_micros(random.below(100_000))).await;
    if cut == Cut::Everything {
        kill_own_children();
    }
    shell.vm.kill().await.unwrap();
    let exit = shell.vm.wait().await;
    assert!(cut == Cut::Everything || exit == VmExit::Killed, "{exit}");
    let mut output = Vec::new();
    told.read_to_end(&mut output).await.unwrap();
    let output = String::from_utf8_lossy(&output).replace('\r', "");
    // A line that is not whole tells nothing.
    output
        .split_inclusive('\n')
        .filter_map(|line| {
            line.strip_prefix("synced ")?
                .strip_suffix('\n')?
                .parse()
                .ok()
        })
        .collect()
}

fn new_disk(folder: &Path, format: DiskFormat) -> PathBuf {
    let raw = folder.join("raw");
    File::create(&raw).unwrap().set_len(96 << 20).unwrap();
    host("/usr/sbin/mkfs.ext4", &["-q", text(&raw)]);
    if format == DiskFormat::Raw {
        return raw;
    }
    let qcow2 = folder.join("qcow2");
    let arguments = ["convert", "-O", "qcow2", text(&raw), text(&qcow2)];
    host("qemu-img", &arguments);
    fs::remove_file(&raw).unwrap();
    qcow2
}

/// The raw image that is in it, as the power cut left it.
fn as_left(folder: &Path, disk: &Path, format: DiskFormat) -> PathBuf {
    if format == DiskFormat::Raw {
        return disk.to_owned();
    }
    let (status, output) = host_status("qemu-img", &["check", text(disk)]);
    // Clusters that nothing refers to (3) are what a cut may leave; errors (2) are not.
    assert!(status == 0 || status == 3, "{status}: {output}");
    let raw = folder.join("left");
    let arguments = ["convert", "-O", "raw", text(disk), text(&raw)];
    host("qemu-img", &arguments);
    raw
}

/// After the journal's replay the file system is sound and holds each of the files.
fn assert_holds(folder: &Path, image: &Path, synced: &BTreeSet<u64>) {
    let (status, output) = host_status("/usr/sbin/e2fsck", &["-fy", text(image)]);
    assert!(status <= 1, "{status}: {output}");
    assert!(output.contains("recovering journal"), "{output}");
    assert!(only_replayed(&output), "{output}");
    host("/usr/sbin/e2fsck", &["-fn", text(image)]);
    let files = folder.join("out");
    fs::create_dir(&files).unwrap();
    let dump = format!("rdump /files {}", text(&files));
    host("/usr/sbin/debugfs", &["-R", &dump, text(image)]);
    for number in synced {
        let path = files.join("files").join(number.to_string());
        let found = fs::read_to_string(&path);
        let found = found.unwrap_or_else(|error| panic!("synced file {number}: {error}"));
        assert!(
            found == content_of(*number),
            "synced file {number}: {} bytes instead of {}",
            found.len(),
            content_of(*number).len()
        );
    }
}

/// Whether `e2fsck` mended nothing beside the journal. The superblock's two sums are no part of that: a
/// mount counts them anew.
fn only_replayed(output: &str) -> bool {
    let lines: Vec<_> = output.lines().collect();
    let sums = ["Free blocks count wrong (", "Free inodes count wrong ("];
    lines
        .windows(2)
        .all(|pair| !pair[1].contains("? yes") || sums.iter().any(|sum| pair[0].starts_with(sum)))
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn synced_files_are_whole_after_each_power_cut() {
    let variable = |name| std::env::var(name).ok().map(|text| text.parse().unwrap());
    let rounds: u64 = variable("CAPSA_SOAK_ROUNDS").unwrap_or(ROUNDS);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = variable("CAPSA_SOAK_SEED").unwrap_or(now.unwrap().as_secs());
    println!("CAPSA_SOAK_SEED={seed}");
    let mut random = Random(seed);
    let (begun, mut total) = (Instant::now(), 0);

    for round in 0..rounds {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let format = match round % 2 {
            0 => DiskFormat::Raw,
            _ => DiskFormat::Qcow2,
        };
        let disk = new_disk(folder, format);
        let builder = test_utils::vm().await.disk(DiskSpec {
            format: Some(format),
            ..DiskSpec::new(&disk)
        });

        let cut = match round / 2 % 2 {
            0 => Cut::Machine,
            _ => Cut::Everything,
        };
        let synced = told_until_the_power_is_cut(builder, cut, &mut random).await;

        println!(
            "round {round}, {format:?}, {cut:?}: {} files synced",
            synced.len()
        );
        total += synced.len();
        assert!(!synced.is_empty());
        assert_holds(folder, &as_left(folder, &disk, format), &synced);
    }
    println!(
        "{rounds} power cuts, {total} synced files, none lost, in {:.0} s",
        begun.elapsed().as_secs_f64()
    );
}

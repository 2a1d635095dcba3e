use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use tempfile::TempDir;

use super::*;
use crate::block::GrowError;
use crate::guest_io::GuestIoVec;

const SIZE: u64 = 8 << 20;

/// A child has every descriptor of this process until it runs its program, and locks with them:
/// tests that look at locks keep others from starting children.
static STARTING_CHILDREN: RwLock<()> = RwLock::new(());

fn no_children_start() -> RwLockReadGuard<'static, ()> {
    STARTING_CHILDREN
        .read()
        .unwrap_or_else(PoisonError::into_inner)
}

fn run_qemu_img(arguments: &[&str]) -> Output {
    let starting = STARTING_CHILDREN
        .write()
        .unwrap_or_else(PoisonError::into_inner);
    let child = Command::new("qemu-img")
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("these tests compare with qemu-img: install qemu-utils");
    drop(starting);
    child.wait_with_output().unwrap()
}

fn qemu_img(arguments: &[&str]) -> String {
    let output = run_qemu_img(arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn raw(&self, name: &str, byte: u8) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, vec![byte; SIZE as usize]).unwrap();
        path
    }

    fn qcow2(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let path = self.path(name);
        let mut all = vec!["create", "-q", "-f", "qcow2"];
        all.extend(arguments);
        all.push(text(&path));
        if !arguments.contains(&"-b") {
            all.push("8M");
        }
        qemu_img(&all);
        path
    }
}

fn source(path: &Path, access: DiskAccess) -> DiskSource {
    DiskSource {
        path: path.to_path_buf(),
        format: None,
        access,
        allow_backing: false,
    }
}

fn trusted(path: &Path, access: DiskAccess) -> DiskSource {
    DiskSource {
        allow_backing: true,
        ..source(path, access)
    }
}

fn read(disk: &dyn Backend, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0xee; len];
    disk.read(GuestIoVec::from_host(&mut data), offset).unwrap();
    data
}

fn write(disk: &dyn Backend, offset: u64, byte: u8, len: usize) {
    disk.write(GuestIoVec::from_host(&mut vec![byte; len]), offset)
        .unwrap();
}

fn check(path: &Path) {
    qemu_img(&["check", "-q", text(path)]);
}

#[test]
fn qcow2_written_here_is_sound_for_qemu() {
    let folder = Folder::new();
    let path = folder.qcow2("a.qcow2", &[]);
    let disk = source(&path, DiskAccess::ReadWrite)
        .open()
        .unwrap()
        .into_backend()
        .unwrap();
    assert_eq!(disk.size(), SIZE);
    for at in 0..60 {
        write(&*disk, at * 131_072 + 512, at as u8 + 1, 70_000 / 512 * 512);
    }
    disk.write_zeroes(1 << 20, 1 << 20, false).unwrap();
    disk.discard(4 << 20, 1 << 20).unwrap();
    disk.flush().unwrap();
    assert_eq!(read(&*disk, 1 << 20, 4096), vec![0; 4096]);
    assert_eq!(read(&*disk, 131_072 + 512, 512), vec![2; 512]);
    drop(disk);
    check(&path);
    let raw = folder.path("a.raw");
    qemu_img(&["convert", "-O", "raw", text(&path), text(&raw)]);
    let content = fs::read(raw).unwrap();
    assert_eq!(content[131_072 + 512..][..512], [2; 512]);
    assert_eq!(content[4 << 20..][..512], [0; 512]);
}

#[test]
fn qcow2_made_by_qemu_is_read_compressed_too() {
    let folder = Folder::new();
    let raw = folder.raw("a.raw", 0x5a);
    let path = folder.path("a.qcow2");
    qemu_img(&["convert", "-c", "-O", "qcow2", text(&raw), text(&path)]);
    let disk = source(&path, DiskAccess::ReadOnly)
        .open()
        .unwrap()
        .into_backend()
        .unwrap();
    assert!(disk.is_read_only());
    assert_eq!(read(&*disk, SIZE - 4096, 4096), vec![0x5a; 4096]);
}

#[test]
fn qcow2_grown_is_sound_and_keeps_its_content() {
    let folder = Folder::new();
    let path = folder.qcow2("a.qcow2", &[]);
    let disk = source(&path, DiskAccess::ReadWrite)
        .open()
        .unwrap()
        .into_backend()
        .unwrap();
    write(&*disk, 0, 7, 4096);
    disk.grow(4 * SIZE).unwrap();
    write(&*disk, 4 * SIZE - 512, 8, 512);
    disk.flush().unwrap();
    assert_eq!(disk.size(), 4 * SIZE);
    drop(disk);
    check(&path);
    let disk = source(&path, DiskAccess::ReadOnly)
        .open()
        .unwrap()
        .into_backend()
        .unwrap();
    assert_eq!(read(&*disk, 4 * SIZE - 512, 512), vec![8; 512]);
    assert_eq!(read(&*disk, 0, 512), vec![7; 512]);
}

#[test]
fn qcow2_that_cannot_grow_says_why() {
    let folder = Folder::new();
    let path = folder.qcow2("a.qcow2", &[]);
    let _alone = no_children_start();
    let open = |access| source(&path, access).open().unwrap().into_backend();
    let disk = open(DiskAccess::ReadWrite).unwrap();
    assert!(matches!(
        disk.grow(SIZE - 512),
        Err(GrowError::Smaller(SIZE))
    ));
    assert!(matches!(disk.grow(SIZE + 1), Err(GrowError::NotSectors(_))));
    assert_eq!(disk.size(), SIZE);
    drop(disk);
    let disk = open(DiskAccess::ReadOnly).unwrap();
    assert!(matches!(disk.grow(2 * SIZE), Err(GrowError::ReadOnly)));
}

#[test]
fn overlay_grown_leaves_its_base_and_reads_zeroes_beyond_it() {
    let folder = Folder::new();
    let base = folder.raw("base", 0x33);
    let overlay = DiskAccess::Overlay(Overlay::Temporary(None));
    let disk = source(&base, overlay)
        .open()
        .unwrap()
        .into_backend()
        .unwrap();
    disk.grow(2 * SIZE).unwrap();
    assert_eq!(disk.size(), 2 * SIZE);
    assert_eq!(read(&*disk, SIZE - 512, 512), vec![0x33; 512]);
    assert_eq!(read(&*disk, 2 * SIZE - 512, 512), vec![0; 512]);
    assert_eq!(fs::metadata(&base).unwrap().len(), SIZE);
}

#[test]
fn format_is_told_by_content_not_by_name() {
    let folder = Folder::new();
    let image = folder.qcow2("named.raw", &[]);
    let raw = folder.raw("named.qcow2", 1);
    let size = |path: &Path| {
        source(path, DiskAccess::ReadOnly)
            .open()
            .unwrap()
            .size()
            .unwrap()
    };
    assert_eq!(size(&image), SIZE);
    assert_eq!(size(&raw), SIZE);
    let stated = DiskSource {
        format: Some(ImageFormat::Raw),
        ..source(&image, DiskAccess::ReadOnly)
    };
    assert_ne!(stated.open().unwrap().size().unwrap(), SIZE);
    let stated = DiskSource {
        format: Some(ImageFormat::Qcow2),
        ..source(&raw, DiskAccess::ReadOnly)
    };
    assert!(matches!(stated.open(), Err(ImageError::Format { .. })));
}

#[test]
fn backing_file_needs_permission() {
    let folder = Folder::new();
    folder.raw("base.raw", 0x11);
    let path = folder.qcow2("top.qcow2", &["-b", "base.raw", "-F", "raw"]);
    let denied = source(&path, DiskAccess::ReadWrite).open();
    assert!(matches!(denied, Err(ImageError::Backing { backing, .. }) if backing == "base.raw"));

    let disk = trusted(&path, DiskAccess::ReadWrite)
        .open()
        .unwrap()
        .into_backend()
        .unwrap();
    assert_eq!(read(&*disk, 4096, 512), vec![0x11; 512]);
    write(&*disk, 4096, 0x22, 512);
    assert_eq!(
        read(&*disk, 4096, 1024),
        [vec![0x22; 512], vec![0x11; 512]].concat()
    );
    disk.flush().unwrap();
    drop(disk);
    check(&path);
    assert_eq!(
        fs::read(folder.path("base.raw")).unwrap(),
        vec![0x11; SIZE as usize]
    );
}

#[test]
fn backing_file_that_is_missing_is_named() {
    let folder = Folder::new();
    let base = folder.raw("base.raw", 0x11);
    let path = folder.qcow2("top.qcow2", &["-b", "base.raw", "-F", "raw"]);
    fs::remove_file(&base).unwrap();
    let result = trusted(&path, DiskAccess::ReadOnly).open();
    assert!(matches!(result, Err(ImageError::Missing(missing)) if missing == base));
}

#[test]
fn backing_files_in_a_circle_are_rejected() {
    let folder = Folder::new();
    let one = folder.qcow2("one.qcow2", &[]);
    let two = folder.qcow2("two.qcow2", &["-b", "one.qcow2", "-F", "qcow2"]);
    qemu_img(&["rebase", "-u", "-b", text(&two), "-F", "qcow2", text(&one)]);
    let result = trusted(&one, DiskAccess::ReadOnly).open();
    assert!(
        matches!(result, Err(ImageError::TooDeep { .. })),
        "{result:?}"
    );
}

#[test]
fn overlay_takes_writes_and_leaves_its_base_alone() {
    for make in [
        Folder::raw as fn(&Folder, &str, u8) -> PathBuf,
        |folder: &Folder, name, _| folder.qcow2(name, &[]),
    ] {
        let folder = Folder::new();
        let base = make(&folder, "base", 0x33);
        let before = fs::read(&base).unwrap();
        let place = Overlay::Temporary(Some(folder.0.path().to_path_buf()));
        let open = || {
            source(&base, DiskAccess::Overlay(place.clone()))
                .open()
                .unwrap()
        };
        let (one, two) = (
            open().into_backend().unwrap(),
            open().into_backend().unwrap(),
        );
        let original = read(&*one, 1 << 20, 512);
        write(&*one, 1 << 20, 1, 512);
        write(&*two, 1 << 20, 2, 512);
        one.flush().unwrap();
        assert_eq!(
            read(&*one, 1 << 20, 1024),
            [vec![1; 512], original.clone()].concat()
        );
        assert_eq!(read(&*two, 1 << 20, 512), vec![2; 512]);
        one.discard(2 << 20, 1 << 20).unwrap();
        assert_eq!(read(&*one, 2 << 20, 512), vec![0; 512]);
        assert_eq!(read(&*two, 2 << 20, 512), original);
        drop((one, two));
        assert_eq!(fs::read(&base).unwrap(), before);
        assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 1);
    }
}

#[test]
fn overlay_kept_is_found_again_and_sound() {
    let folder = Folder::new();
    let base = folder.raw("base.raw", 0x44);
    let kept = folder.path("kept.qcow2");
    let access = DiskAccess::Overlay(Overlay::Kept(kept.clone()));
    let open = || {
        source(&base, access.clone())
            .open()
            .unwrap()
            .into_backend()
            .unwrap()
    };
    let disk = open();
    write(&*disk, 512, 9, 512);
    disk.flush().unwrap();
    drop(disk);
    check(&kept);
    let disk = open();
    assert_eq!(
        read(&*disk, 0, 1024),
        [vec![0x44; 512], vec![9; 512]].concat()
    );
    assert!(qemu_img(&["info", "-U", text(&kept)]).contains("base.raw"));
}

#[test]
fn overlay_kept_of_another_base_is_rejected() {
    let folder = Folder::new();
    let one = folder.raw("one.raw", 1);
    let two = folder.raw("two.raw", 2);
    let access = DiskAccess::Overlay(Overlay::Kept(folder.path("kept.qcow2")));
    drop(source(&one, access.clone()).open().unwrap());
    let result = source(&two, access).open();
    assert!(
        matches!(result, Err(ImageError::OtherBase { .. })),
        "{result:?}"
    );
}

#[test]
fn overlay_of_base_with_odd_size_reads_its_last_bytes() {
    let folder = Folder::new();
    let base = folder.path("base.raw");
    fs::write(&base, vec![5; 1000]).unwrap();
    let place = Overlay::Temporary(Some(folder.0.path().to_path_buf()));
    let disk = source(&base, DiskAccess::Overlay(place))
        .open()
        .unwrap()
        .into_backend()
        .unwrap();
    assert_eq!(disk.size(), 1024);
    assert_eq!(read(&*disk, 0, 1024), [vec![5; 1000], vec![0; 24]].concat());
    write(&*disk, 512, 6, 512);
    assert_eq!(read(&*disk, 0, 1024), [vec![5; 512], vec![6; 512]].concat());
}

#[test]
fn lock_keeps_two_writers_apart() {
    let _alone = no_children_start();
    let folder = Folder::new();
    let path = folder.raw("a.raw", 1);
    let open = |access| source(&path, access).open();
    let writer = open(DiskAccess::ReadWrite).unwrap();
    let busy = |result| matches!(result, Err(ImageError::Busy { .. }));
    assert!(busy(open(DiskAccess::ReadWrite)));
    assert!(busy(open(DiskAccess::ReadOnly)));
    let temporary = DiskAccess::Overlay(Overlay::Temporary(None));
    assert!(busy(open(temporary.clone())));
    drop(writer);
    let readers = [open(DiskAccess::ReadOnly), open(temporary)].map(Result::unwrap);
    assert!(busy(open(DiskAccess::ReadWrite)));
    drop(readers);
    open(DiskAccess::ReadWrite).unwrap();
}

#[test]
fn lock_goes_with_the_descriptors() {
    let _alone = no_children_start();
    let folder = Folder::new();
    let path = folder.raw("a.raw", 1);
    let (plan, files) = source(&path, DiskAccess::ReadWrite)
        .open()
        .unwrap()
        .into_parts();
    let copies: Vec<_> = files.iter().map(|file| file.try_clone().unwrap()).collect();
    drop(files);
    let disk = OpenDisk::backend_from_parts(plan, copies).unwrap();
    assert!(source(&path, DiskAccess::ReadOnly).open().is_err());
    drop(disk);
    source(&path, DiskAccess::ReadWrite).open().unwrap();
}

#[test]
fn lock_keeps_qemu_out() {
    let folder = Folder::new();
    let path = folder.qcow2("a.qcow2", &[]);
    let _writer = source(&path, DiskAccess::ReadWrite).open().unwrap();
    let output = run_qemu_img(&["snapshot", "-c", "x", text(&path)]);
    assert!(!output.status.success());
}

#[test]
fn plan_without_its_descriptors_is_rejected() {
    let folder = Folder::new();
    let path = folder.raw("a.raw", 1);
    let (plan, _files) = source(&path, DiskAccess::ReadOnly)
        .open()
        .unwrap()
        .into_parts();
    let result = OpenDisk::backend_from_parts(plan, Vec::new());
    assert!(matches!(
        result,
        Err(ImageError::Descriptors {
            expected: 1,
            found: 0
        })
    ));
}

#[test]
fn what_is_no_disk_is_told_before_anything_starts() {
    let folder = Folder::new();
    let missing = folder.path("missing");
    let open = |path: &Path| source(path, DiskAccess::ReadWrite).open().unwrap_err();
    assert!(matches!(open(&missing), ImageError::Missing(_)));
    assert!(matches!(
        open(folder.0.path()),
        ImageError::NotADisk {
            what: "a directory",
            ..
        }
    ));
    let device = open(Path::new("/dev/null"));
    assert!(matches!(
        device,
        ImageError::NotADisk {
            what: "a character device",
            ..
        }
    ));
    let pipe = folder.path("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    assert!(matches!(open(&pipe), ImageError::NotADisk { .. }));
    let empty = folder.path("empty");
    fs::write(&empty, b"").unwrap();
    assert!(matches!(open(&empty), ImageError::Empty(_)));
}

#[test]
fn formats_that_cannot_be_used_are_told_by_name() {
    let folder = Folder::new();
    for (format, name) in [
        ("vmdk", "VMDK"),
        ("vdi", "VDI"),
        ("vhdx", "VHDX"),
        ("qed", "QED"),
    ] {
        let path = folder.path(format);
        qemu_img(&["create", "-q", "-f", format, text(&path), "8M"]);
        let error = source(&path, DiskAccess::ReadOnly).open().unwrap_err();
        assert!(matches!(error, ImageError::Unsupported { format, .. } if format == name));
    }
}

#[test]
fn encrypted_image_is_rejected() {
    let folder = Folder::new();
    for method in [1, 2] {
        let path = folder.qcow2("a.qcow2", &[]);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0, 0, 0, method], 32).unwrap();
        let error = source(&path, DiskAccess::ReadOnly).open().unwrap_err();
        assert!(matches!(error, ImageError::Encrypted(_)));
    }
}

#[test]
fn image_with_external_data_is_rejected() {
    let folder = Folder::new();
    let data = format!("data_file={}", text(&folder.path("data")));
    let path = folder.qcow2("a.qcow2", &["-o", &data]);
    let error = source(&path, DiskAccess::ReadOnly).open().unwrap_err();
    assert!(matches!(error, ImageError::ExternalData(_)));
}

#[test]
fn corrupt_image_is_rejected() {
    let folder = Folder::new();
    // Version, cluster bits, header length, unknown incompatible feature, corrupt mark, disk size.
    let damages: [(u64, &[u8]); 6] = [
        (4, &[0, 0, 0, 9]),
        (20, &[0, 0, 0, 63]),
        (100, &[0, 0, 0, 3]),
        (72, &[0x80]),
        (79, &[2]),
        (24, &[0xff; 8]),
    ];
    for (at, bytes) in damages {
        let path = folder.qcow2("a.qcow2", &[]);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(bytes, at).unwrap();
        let result = source(&path, DiskAccess::ReadWrite)
            .open()
            .and_then(OpenDisk::into_backend);
        assert!(
            matches!(result, Err(ImageError::Corrupt { .. })),
            "damage at {at}"
        );
    }
    let path = folder.path("cut.qcow2");
    fs::File::create(&path)
        .unwrap()
        .write_all(b"QFI\xfb\0\0\0\x03")
        .unwrap();
    let error = source(&path, DiskAccess::ReadOnly).open().unwrap_err();
    assert!(matches!(error, ImageError::Corrupt { .. }));
}

#[test]
fn messages_name_the_file_and_the_fix() {
    let error = source(Path::new("/nowhere/disk.img"), DiskAccess::ReadOnly)
        .open()
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the disk image /nowhere/disk.img does not exist"
    );
    let busy = ImageError::Busy {
        path: "/d".into(),
        write: true,
    }
    .to_string();
    assert!(
        busy.contains("/d") && busy.contains("read-only or as an overlay"),
        "{busy}"
    );
}

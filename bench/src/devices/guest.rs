//! The guest: busybox and the benchmark's program, and an `/init` that carries out what the console says.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use capsa_bench::archive::Archive;
use capsa_bench::folder::Folder;

/// What `/init` prints when it takes commands.
pub(crate) const MARK: &str = "CAPSA-BENCH-TAKES-COMMANDS";
/// What it prints after each, before the status.
pub(crate) const END: &str = "CAPSA-BENCH-ENDED-WITH";

/// Where the share is mounted.
pub(crate) const MOUNTED: &str = "/mnt";

pub(crate) fn write_initramfs(folder: &Folder, busybox: &Path, program: &Path) -> Result<PathBuf> {
    let program =
        fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let init = format!(
        "#!/busybox sh
/busybox mkdir -p /bin
/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
stty -echo
echo {MARK}
while read -r command; do
  eval \"$command\" </dev/null 2>&1
  echo \"{END} $?\"
done
"
    );
    let mut archive = Archive::create(folder.path("initramfs.cpio"))?;
    for directory in ["proc", "sys", "mnt"] {
        archive.directory(directory)?;
    }
    archive.busybox(busybox)?;
    archive.program("bench-guest", &program)?;
    archive.program("init", init.as_bytes())?;
    archive.finish()
}

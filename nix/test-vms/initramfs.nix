# The default initramfs: the agent as /init, BusyBox for everything else. The same tree as in
# crates/guest/src/initramfs.rs.
{
  lib,
  runCommand,
  buildPackages,
  pkgsStatic,
}:
let
  agent = pkgsStatic.rustPlatform.buildRustPackage {
    pname = "capsa-agent";
    version = "0.1.0";
    src = lib.cleanSource ../..;
    cargoLock.lockFile = ../../Cargo.lock;
    buildAndTestSubdir = "crates/agent";
    buildType = "guest";
    # The tests are those of the workspace, which run there.
    doCheck = false;
  };
in
runCommand "capsa-initramfs"
  {
    nativeBuildInputs = with buildPackages; [
      cpio
      fakeroot
    ];
  }
  ''
    mkdir -p root/{bin,dev,etc,proc,root,run,sys,tmp,usr,var}
    cd root
    chmod 700 root && chmod 555 proc sys && chmod 1777 tmp
    install -m 755 ${agent}/bin/capsa-agent init
    install -m 755 ${pkgsStatic.busybox}/bin/busybox bin/busybox
    for link in ${pkgsStatic.busybox}/bin/* ${pkgsStatic.busybox}/sbin/*; do
      name=$(basename "$link")
      [ "$name" = busybox ] || ln -sf busybox "bin/$name"
    done
    for command in halt poweroff reboot; do
      ln -sf ../init "bin/$command"
    done
    ln -s bin sbin
    ln -s ../bin usr/bin
    ln -s ../bin usr/sbin
    ln -s ../run var/run
    ln -s ../tmp var/tmp
    echo 'root:x:0:0:root:/root:/bin/sh' > etc/passwd
    printf 'root:x:0:\ntty:x:5:\n' > etc/group
    printf '127.0.0.1 localhost\n::1 localhost\n' > etc/hosts
    mkdir -p $out
    # Device nodes and root's ownership exist in fakeroot only, and in the archive.
    fakeroot sh -c '
      mknod -m 600 dev/console c 5 1
      mknod -m 666 dev/null c 1 3
      find . -mindepth 1 -print0 | LC_ALL=C sort -z | cpio --quiet --null --reproducible -o -H newc
    ' > $out/default.cpio
  ''

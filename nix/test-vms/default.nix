# The machines that the integration tests start: a kernel and an initramfs for each architecture.
#
#   nix-build nix/test-vms -A x86_64 -o result-vms
#   nix-build nix/test-vms -A aarch64 -o result-vms
#
# gives the same pieces as `cargo xtask test-vms` does without Nix: the configuration of `kernel/`, the agent as
# `/init`, BusyBox for everything else. The result is a data directory; `docs/testing.md` says how to use it.
{
  pkgs ? import <nixpkgs> { },
}:
let
  for = pkgsOfGuest: arch: rec {
    kernel = pkgsOfGuest.callPackage ./kernel.nix { inherit arch; };
    initramfs = pkgsOfGuest.callPackage ./initramfs.nix { };
    # Laid out as capsa looks for it: see crates/guest/src/discover.rs.
    data = pkgs.runCommand "capsa-test-vms-${arch}" { } ''
      mkdir -p $out/kernels/default $out/initramfs
      ln -s ${kernel}/kernel ${kernel}/config $out/kernels/default/
      ln -s ${initramfs}/default.cpio $out/initramfs/
    '';
  };
  x86_64 =
    if pkgs.stdenv.hostPlatform.system == "x86_64-linux" then pkgs else pkgs.pkgsCross.gnu64;
  aarch64 =
    if pkgs.stdenv.hostPlatform.system == "aarch64-linux" then
      pkgs
    else
      pkgs.pkgsCross.aarch64-multiplatform;
in
{
  x86_64 = (for x86_64 "x86_64").data;
  aarch64 = (for aarch64 "aarch64").data;
}

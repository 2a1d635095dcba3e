# The lab's own kernel where there is no apt: nixpkgs' kernel and modules, laid out as the lab expects them
# (docs/lab.md, CAPSA_LAB_KERNEL).
{
  pkgs ? import <nixpkgs> { },
}:
let
  kernel = pkgs.linux_6_12;
  # nixpkgs puts modules into an output of their own, where it has one.
  modules = kernel.modules or kernel;
in
pkgs.runCommand "capsa-lab-kernel" { } ''
  mkdir -p $out/boot $out/lib/modules
  ln -s ${kernel}/bzImage $out/boot/vmlinuz-${kernel.modDirVersion}
  ln -s ${modules}/lib/modules/${kernel.modDirVersion} $out/lib/modules/${kernel.modDirVersion}
''

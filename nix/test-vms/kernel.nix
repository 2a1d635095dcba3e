# The default guest kernel: mainline, from nothing but the fragments in `kernel/`. What Debian's sources give
# elsewhere (crates/guest/src/build) comes from nixpkgs here.
{
  lib,
  stdenv,
  buildPackages,
  linux_6_12,
  arch,
}:
let
  # The kernel's own names for architecture and image; x86 guests boot the ELF file.
  target =
    {
      x86_64 = {
        karch = "x86";
        image = "vmlinux";
      };
      aarch64 = {
        karch = "arm64";
        image = "arch/arm64/boot/Image";
      };
    }
    .${arch};
  fragments = [
    ../../kernel/common.config
    ../../kernel/${arch}.config
  ];
in
stdenv.mkDerivation {
  pname = "capsa-kernel-${arch}";
  inherit (linux_6_12) version src;

  nativeBuildInputs = with buildPackages; [
    bc
    bison
    elfutils
    flex
    lz4
    perl
  ];
  depsBuildBuild = [ buildPackages.stdenv.cc ];
  hardeningDisable = [ "all" ];
  enableParallelBuilding = true;

  makeFlags = [
    "ARCH=${target.karch}"
  ]
  ++ lib.optional (
    stdenv.hostPlatform != stdenv.buildPlatform
  ) "CROSS_COMPILE=${stdenv.cc.targetPrefix}";

  postPatch = ''
    patchShebangs scripts
  '';

  configurePhase = ''
    runHook preConfigure
    make $makeFlags tinyconfig
    ARCH=${target.karch} scripts/kconfig/merge_config.sh -m .config ${lib.concatStringsSep " " (map toString fragments)}
    make $makeFlags olddefconfig
    # A line of a fragment that did not survive is a fragment that is wrong.
    for fragment in ${lib.concatStringsSep " " (map toString fragments)}; do
      grep -E '^CONFIG_[A-Z0-9_]+=' "$fragment" | while read -r line; do
        grep -qxF "$line" .config || { echo "not in the configuration: $line"; exit 1; }
      done
    done
    runHook postConfigure
  '';

  buildFlags = [ (baseNameOf target.image) ];

  installPhase = ''
    runHook preInstall
    install -D -m 644 ${target.image} $out/kernel
    install -m 644 .config $out/config
    runHook postInstall
  '';
  # Nothing of a kernel is a program of this system.
  dontFixup = true;
}

//! What vfkit 0.6 makes of its command line, as far as this project uses it: the model behind the
//! plan's tests and the stand-in. `vfkit_model_agrees_with_the_real_parser` holds it to what the
//! real one answered.

use std::collections::BTreeMap;
use std::path::Path;

/// A parsed command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    pub(crate) cpus: u32,
    pub(crate) memory_mib: u64,
    pub(crate) kernel: String,
    pub(crate) initrd: String,
    pub(crate) command_line: String,
    pub(crate) variable_store: Option<String>,
    pub(crate) create_store: bool,
    pub(crate) devices: Vec<Device>,
    pub(crate) nested: bool,
    pub(crate) rest_socket: Option<String>,
    pub(crate) rest_uri: String,
}

/// One `--device`: its type and options.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    pub(crate) kind: String,
    pub(crate) options: BTreeMap<String, String>,
}

impl Device {
    pub(crate) fn get(&self, key: &str) -> &str {
        self.options.get(key).map_or("", String::as_str)
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.options.contains_key(key)
    }
}

/// Parses what follows the program's name.
pub(crate) fn parse(arguments: &[String]) -> Result<Parsed, String> {
    let mut parsed = Parsed {
        cpus: 1,
        memory_mib: 512,
        rest_uri: "none://".to_owned(),
        ..Parsed::default()
    };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--nested" {
            parsed.nested = true;
            continue;
        }
        let value = arguments
            .next()
            .ok_or_else(|| format!("flag needs an argument: {argument}"))?;
        match argument.as_str() {
            "--cpus" => parsed.cpus = value.parse().map_err(|_| "bad --cpus".to_owned())?,
            "--memory" => {
                parsed.memory_mib = value.parse().map_err(|_| "bad --memory".to_owned())?;
            }
            "--kernel" => parsed.kernel = value.clone(),
            "--initrd" => parsed.initrd = value.clone(),
            "--kernel-cmdline" => parsed.command_line = value.clone(),
            "--bootloader" => bootloader(value, &mut parsed)?,
            "--device" => parsed.devices.push(device(value)?),
            "--restful-uri" => {
                parsed.rest_uri = value.clone();
                parsed.rest_socket = value.strip_prefix("unix://").map(str::to_owned);
            }
            "--timesync" => {}
            other => return Err(format!("unknown flag: {other}")),
        }
    }
    Ok(parsed)
}

/// Splits at commas outside double quotes; a part that is quoted as a whole loses its quotes.
fn split_quoted(text: &str) -> Result<Vec<String>, String> {
    let mut parts = vec![String::new()];
    let mut quoted = false;
    for character in text.chars() {
        if character == '"' {
            quoted = !quoted;
        }
        match parts.last_mut() {
            Some(part) if character != ',' || quoted => part.push(character),
            _ => parts.push(String::new()),
        }
    }
    if quoted {
        return Err("mismatched \"".to_owned());
    }
    Ok(parts.iter().map(|part| trim_quotes(part)).collect())
}

fn trim_quotes(text: &str) -> String {
    text.strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(text)
        .to_owned()
}

fn option(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

fn bootloader(text: &str, parsed: &mut Parsed) -> Result<(), String> {
    let parts = split_quoted(text)?;
    let kind = parts[0].as_str();
    for (key, value) in parts[1..]
        .iter()
        .filter(|part| !part.is_empty())
        .map(|part| option(part))
    {
        match (kind, key.as_str()) {
            ("linux", "kernel") => parsed.kernel = value,
            ("linux", "initrd") => parsed.initrd = value,
            ("linux", "cmdline") => parsed.command_line = trim_quotes(&value),
            ("efi", "variable-store") => parsed.variable_store = Some(value),
            ("efi", "create") => parsed.create_store = true,
            _ => return Err(format!("unknown option for {kind} bootloaders: {key}")),
        }
    }
    Ok(())
}

fn device(text: &str) -> Result<Device, String> {
    let mut parts = text.split(',');
    let kind = parts.next().unwrap_or_default().to_owned();
    let known: &[&str] = match kind.as_str() {
        "virtio-blk" => &["path", "readonly", "deviceId"],
        "virtio-fs" => &["sharedDir", "mountTag"],
        "virtio-net" => &["nat", "mac", "fd", "unixSocketPath"],
        "virtio-vsock" => &["port", "socketURL", "listen", "connect"],
        "virtio-serial" => &["stdio", "pty", "logFilePath"],
        "virtio-rng" | "virtio-balloon" => &[],
        "rosetta" => &["mountTag", "install", "ignore-if-missing"],
        other => return Err(format!("unknown device type: {other}")),
    };
    let mut device = Device {
        kind,
        ..Device::default()
    };
    for part in parts.filter(|part| !part.is_empty()) {
        let (key, value) = option(part);
        if !known.contains(&key.as_str()) {
            return Err(format!("unknown option for {} devices: {key}", device.kind));
        }
        device.options.insert(key, value);
    }
    if device.kind == "virtio-net" {
        match ["nat", "fd", "unixSocketPath"]
            .iter()
            .filter(|key| device.has(key))
            .count()
        {
            0 => return Err("one of 'nat' or 'fd' or 'unixSocketPath' must be set".to_owned()),
            1 => {}
            _ => return Err("'nat' and 'fd' cannot be set at the same time".to_owned()),
        }
    }
    Ok(device)
}

/// What vfkit checks of a disk image before it starts anything.
#[allow(dead_code, reason = "the plan's tests have no image files")]
pub(crate) fn check_disk(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let content = std::fs::read(path)
        .map_err(|error| format!("failed to open file {shown}: open {shown}: {error}"))?;
    if content.is_empty() {
        return Err(format!("failed to read the header of file {shown}: EOF"));
    }
    if content.starts_with(b"QFI\xfb") {
        return Err("vfkit does not support qcow2 image format".to_owned());
    }
    Ok(())
}

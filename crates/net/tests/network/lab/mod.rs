//! Three network namespaces: the *guest*, whose kernel sits behind a TAP device that is bridged to
//! the network's frame socket; the *host*, in which the engine runs; the *internet* with servers,
//! a veth pair away from the host. Needs root, `ip` (iproute2) and `/dev/net/tun`.
#![allow(dead_code, unsafe_code, missing_docs)] // each test file uses a part; TUN has no safe interface

mod tap;

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

use capsa_net::{
    ControlClient, Engine, FrameFormat, GuestAddresses, GuestConfig, NetworkConfig, Policy,
    Resolver,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// Addresses of the internet's servers.
pub const SERVER4: &str = "1.2.3.4";
pub const SERVER6: &str = "2606:4700::1234";
pub const OTHER4: &str = "5.6.7.8";

static NEXT: AtomicU32 = AtomicU32::new(0);

pub struct Lab {
    name: String,
    engine: Option<JoinHandle<()>>,
    runtime: tokio::runtime::Runtime,
    client: Option<ControlClient>,
    children: Vec<Child>,
    pub addresses: Vec<GuestAddresses>,
    pub config: NetworkConfig,
    guests: usize,
}

/// Everything that a lab is made with.
pub fn network() -> NetworkConfig {
    let mut config = NetworkConfig::new("lab");
    config.resolver = Resolver::Servers(vec![SocketAddr::new(SERVER4.parse().unwrap(), 53)]);
    config.guest(GuestConfig::new("vm".parse().unwrap()))
}

pub fn run(command: &mut Command) -> Output {
    let output = command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn ip(arguments: &str) {
    run(Command::new("ip").args(arguments.split_whitespace()));
}

/// Runs `work` on a thread of its own in a network namespace.
pub fn in_namespace<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let file = File::open(format!("/run/netns/{name}")).unwrap();
    std::thread::spawn(move || {
        rustix::thread::move_into_link_name_space(
            file.as_fd(),
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .unwrap();
        work()
    })
}

/// A connected pair of frame sockets.
pub fn frame_pair(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

impl Lab {
    pub fn start() -> Self {
        Self::with(network())
    }

    pub fn with_policy(policy: Policy) -> Self {
        let mut config = network();
        config.guests[0].policy = policy;
        Self::with(config)
    }

    /// Starts namespaces, guests and engine. The guests are set up with their addresses.
    pub fn with(config: NetworkConfig) -> Self {
        let lab = Self::bare(config);
        for index in 0..lab.guests {
            lab.configure(index);
        }
        lab
    }

    /// Like [`with`](Self::with), but leaves setting the guests up to the test.
    pub fn bare(config: NetworkConfig) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make network namespaces: run them as root"
        );
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("capsa{}-{number}", std::process::id());
        let guests = config.guests.len();
        let (host, internet) = (format!("{name}-h"), format!("{name}-i"));
        ip(&format!("netns add {host}"));
        ip(&format!("netns add {internet}"));
        ip(&format!("-n {host} link set lo up"));
        ip(&format!("-n {internet} link set lo up"));
        ip(&format!(
            "-n {host} link add up0 type veth peer name down0 netns {internet}"
        ));
        for (namespace, device, ours, theirs) in [(&host, "up0", 1, 2), (&internet, "down0", 2, 1)]
        {
            ip(&format!(
                "-n {namespace} addr add 192.0.2.{ours}/24 dev {device}"
            ));
            ip(&format!(
                "-n {namespace} addr add 2001:db8:1::{ours}/64 dev {device} nodad"
            ));
            ip(&format!("-n {namespace} link set {device} up"));
            ip(&format!(
                "-n {namespace} route add default via 192.0.2.{theirs}"
            ));
            ip(&format!(
                "-n {namespace} -6 route add default via 2001:db8:1::{theirs}"
            ));
        }
        for address in [SERVER4, OTHER4] {
            ip(&format!("-n {internet} addr add {address}/32 dev lo"));
        }
        ip(&format!(
            "-n {internet} addr add {SERVER6}/128 dev lo nodad"
        ));
        sysctl(&host, "net/ipv4/ping_group_range", "0 2147483647");
        let mut sockets = Vec::new();
        let mut ends = Vec::new();
        let addresses = config.addresses().unwrap();
        for (index, guest) in config.guests.iter().enumerate() {
            let namespace = format!("{name}-g{index}");
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
            let kind = match guest.frames {
                FrameFormat::Stream => SocketType::STREAM,
                _ => SocketType::SEQPACKET,
            };
            let (ours, theirs) = frame_pair(kind);
            ends.push((namespace, theirs, guest.frames, addresses[index].mac));
            sockets.push(ours);
        }
        let (control, theirs) = UnixStream::pair().unwrap();
        let copy = config.clone();
        let engine = in_namespace(&host, move || {
            Engine::new(copy, sockets, theirs).unwrap().run().unwrap();
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let client = runtime.block_on(async {
            let client = ControlClient::new(control).unwrap();
            client.ping().await.unwrap();
            client
        });
        for (namespace, socket, format, mac) in ends {
            in_namespace(&namespace, move || tap::attach(socket, format))
                .join()
                .unwrap();
            ip(&format!(
                "-n {namespace} link set tap0 address {mac} mtu {}",
                config.mtu
            ));
        }
        Self {
            name,
            engine: Some(engine),
            runtime,
            client: Some(client),
            children: Vec::new(),
            addresses,
            config,
            guests,
        }
    }

    /// Sets a guest up with its fixed addresses.
    pub fn configure(&self, index: usize) {
        let namespace = format!("{}-g{index}", self.name);
        let own = &self.addresses[index];
        // No surprises from addresses that the kernel makes itself a second later.
        sysctl(&namespace, "net/ipv6/conf/tap0/accept_ra", "0");
        sysctl(&namespace, "net/ipv6/conf/tap0/accept_dad", "0");
        ip(&format!("-n {namespace} link set tap0 up"));
        if let (Some(address), Some(gateway)) = (own.ipv4, own.ipv4_gateway) {
            ip(&format!(
                "-n {namespace} addr add {address}/{} dev tap0",
                own.ipv4_prefix
            ));
            ip(&format!("-n {namespace} route add default via {gateway}"));
        }
        if let (Some(address), Some(gateway)) = (own.ipv6, own.ipv6_gateway) {
            ip(&format!(
                "-n {namespace} addr add {address}/{} dev tap0 nodad",
                own.ipv6_prefix
            ));
            ip(&format!(
                "-n {namespace} -6 route add default via {gateway}"
            ));
        }
        let etc = format!("/etc/netns/{namespace}");
        std::fs::create_dir_all(&etc).unwrap();
        let server = own
            .ipv4_gateway
            .map(IpAddr::V4)
            .or(own.ipv6_gateway.map(IpAddr::V6))
            .unwrap();
        std::fs::write(
            format!("{etc}/resolv.conf"),
            format!("nameserver {server}\noptions timeout:2\n"),
        )
        .unwrap();
    }

    pub fn namespace(&self, which: &str) -> String {
        format!("{}-{which}", self.name)
    }

    /// A command in a namespace: `g0`, `g1`… for the guests, `h`, `i`. It ends after a minute.
    pub fn command(&self, which: &str, line: &str) -> Command {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &self.namespace(which),
            "timeout",
            "60",
            "sh",
            "-c",
            line,
        ]);
        command.stdin(Stdio::null());
        command
    }

    /// Runs a shell command in the first guest; its output and whether it succeeded.
    pub fn try_guest(&self, line: &str) -> (bool, String) {
        self.try_in("g0", line)
    }

    pub fn try_in(&self, which: &str, line: &str) -> (bool, String) {
        let output = self.command(which, line).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    /// Runs a shell command in the first guest, which must succeed.
    pub fn guest(&self, line: &str) -> String {
        let (success, text) = self.try_guest(line);
        assert!(success, "{line}: {text}");
        text
    }

    /// Starts a server or other command that runs until the lab ends.
    pub fn spawn(&mut self, which: &str, line: &str) {
        let mut command = self.command(which, &format!("exec {line}"));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.children.push(command.spawn().unwrap());
    }

    /// Runs `work` in a namespace, on a thread of its own.
    pub fn thread<T: Send + 'static>(
        &self,
        which: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        in_namespace(&self.namespace(which), work)
    }

    /// Runs `work` in a namespace and waits for it.
    pub fn within<T: Send + 'static>(
        &self,
        which: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.thread(which, work).join().unwrap()
    }

    /// Waits until something listens on a TCP port of a namespace.
    pub fn wait_for_port(&self, which: &str, port: u16) {
        let probe = format!("until ss -Hltn 'sport = :{port}' | grep -q .; do sleep 0.05; done");
        run(&mut self.command(which, &probe));
    }

    pub fn control(&self) -> &ControlClient {
        self.client.as_ref().unwrap()
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }
}

pub fn sysctl(namespace: &str, key: &str, value: &str) {
    let path = format!("/proc/sys/{key}");
    let value = value.to_owned();
    in_namespace(namespace, move || std::fs::write(path, value).unwrap())
        .join()
        .unwrap();
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Some(client) = self.client.take() {
            let _ = self.runtime.block_on(client.shutdown());
        }
        let ended = self.engine.take().map(JoinHandle::join);
        let mut suffixes = vec!["h".to_owned(), "i".to_owned()];
        suffixes.extend((0..self.guests).map(|index| format!("g{index}")));
        for suffix in suffixes {
            let name = self.namespace(&suffix);
            // Whatever still runs in there was started by the test.
            if let Ok(output) = Command::new("ip").args(["netns", "pids", &name]).output() {
                for pid in String::from_utf8_lossy(&output.stdout).split_whitespace() {
                    if pid != std::process::id().to_string() {
                        let _ = Command::new("kill").args(["-9", pid]).status();
                    }
                }
            }
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
            let _ = std::fs::remove_dir_all(format!("/etc/netns/{name}"));
        }
        if let Some(Err(_)) = ended
            && !std::thread::panicking()
        {
            panic!("the engine panicked");
        }
    }
}

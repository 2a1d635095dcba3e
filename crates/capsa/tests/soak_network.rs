//! Real programs of this machine in guests, and the network that they talk through: `cargo xtask soak
//! --program soak_network`; results are in docs/soak.md.
#![cfg(target_os = "linux")]
#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and says what it measured"
)]

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::time::{Duration, Instant};

use capsa::network::{Forward, Interface, Policy, Resolver, Rule, VmNetwork};
use capsa::test_utils::{backend, isolation};
use capsa::{Capsa, Command, Output, Rootfs, Sandbox};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Ends what hangs; the lab's guests are slow.
const LIMIT: Duration = Duration::from_secs(40 * 60);
/// The size of the download; another with `CAPSA_SOAK_MIB`.
const DOWNLOAD_MIB: u64 = 2048;
/// How many connections are open at the same time.
const FLOWS: usize = 1000;
/// Where Debian has what is not in the path.
const POSTGRESQL: &str = "/usr/lib/postgresql/15/bin";
/// The host, as the guest sees it.
const HOST: &str = "10.0.2.2";

async fn sandbox(interface: Interface, memory_mib: u64) -> Sandbox {
    let builder = Capsa::sandbox()
        .backend(backend().await.backend)
        .isolation(isolation())
        .rootfs(Rootfs::Host)
        .memory_mib(memory_mib)
        .network(interface);
    builder
        .create()
        .await
        .unwrap_or_else(|error| panic!("{error}"))
}

/// A sandbox that reaches these services of the host's loopback addresses.
async fn client_of(services: &[&str]) -> Sandbox {
    sandbox(Interface::user_nat().policy(reaching(services)), 512).await
}

fn reaching(services: &[&str]) -> Policy {
    let mut policy = Policy::allow_all();
    let rules = services.iter().map(|text| Rule::allow(text).unwrap());
    policy.rules.extend(rules);
    policy
}

async fn network_of(sandbox: &Sandbox) -> VmNetwork {
    sandbox.network().await.unwrap().unwrap()
}

async fn run(sandbox: &Sandbox, command: Command) -> Output {
    tokio::time::timeout(LIMIT, sandbox.exec(command))
        .await
        .unwrap()
        .unwrap()
}

fn script(text: &str) -> Command {
    Command::new("bash").arguments(["-c", text])
}

/// What a script in the guest writes to standard output; it must succeed.
async fn guest(sandbox: &Sandbox, text: &str) -> String {
    succeeded(text, run(sandbox, script(text)).await)
}

fn succeeded(text: &str, output: Output) -> String {
    assert!(
        output.status.success(),
        "{text}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// What a command on the host writes to both outputs; it must succeed.
async fn host(text: String) -> String {
    let work = tokio::task::spawn_blocking(move || {
        let merged = format!("{{ {text}; }} 2>&1");
        let mut shell = Program::new("sh");
        let output = shell.args(["-c", &merged]).stdin(Stdio::null()).output();
        let output = output.unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}: {said}");
        said
    });
    tokio::time::timeout(LIMIT, work).await.unwrap().unwrap()
}

/// A server program on the host, which ends with the test.
struct Server(Child);

impl Server {
    /// Starts it and waits until it listens on a TCP port.
    async fn start(command: &str, port: u16) -> Self {
        let mut shell = Program::new("sh");
        shell.args(["-c", &format!("exec {command}")]);
        let quiet = shell.stdin(Stdio::null()).stdout(Stdio::null());
        let server = Self(quiet.spawn().unwrap());
        let process = server.0.id();
        host(format!(
            "until ss -Hltn 'sport = :{port}' | grep -q .; do kill -0 {process} && sleep 0.05 || exit; done"
        ))
        .await;
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

/// A port that nobody listens on, in both families.
async fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

/// One process that serves what is in `root`, and logs the status of each answer.
fn nginx_config(root: &str, servers: &str) -> String {
    format!(
        "daemon on; master_process off; user root; pid {root}/pid; error_log {root}/error.log;
        events {{ worker_connections 4096; }}
        http {{ log_format status $status; access_log {root}/status.log status;
        client_body_temp_path {root}/b; proxy_temp_path {root}/p; fastcgi_temp_path {root}/f;
        uwsgi_temp_path {root}/u; scgi_temp_path {root}/s; {servers} }}"
    )
}

/// Starts nginx on the host with what `servers` says of it.
async fn host_nginx(root: &Path, servers: &str, port: u16) -> Server {
    let config = nginx_config(root.to_str().unwrap(), servers);
    let config = config.replace("daemon on", "daemon off");
    let root = root.display();
    fs::write(format!("{root}/nginx.conf"), config).unwrap();
    Server::start(
        &format!("nginx -e {root}/start.log -c {root}/nginx.conf"),
        port,
    )
    .await
}

/// The number that follows `label` in what a program said.
fn number_after(label: &str, text: &str) -> f64 {
    let (_, rest) = text
        .split_once(label)
        .unwrap_or_else(|| panic!("{label}: {text}"));
    let word = rest.split_whitespace().next().unwrap();
    word.parse()
        .unwrap_or_else(|error| panic!("{word}: {error}"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn curl_in_the_guest_fetches_by_http_https_and_http2() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().display().to_string();
    let (plain, tls) = (free_port().await, free_port().await);
    host(format!(
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=host.capsa.internal \
         -addext subjectAltName=DNS:host.capsa.internal -keyout {path}/key.pem -out {path}/cert.pem"
    ))
    .await;
    fs::write(root.path().join("index.html"), "the page\n").unwrap();
    let servers = format!(
        "server {{ listen 127.0.0.1:{plain}; listen [::1]:{plain};
        listen 127.0.0.1:{tls} ssl http2; listen [::1]:{tls} ssl http2;
        ssl_certificate {path}/cert.pem; ssl_certificate_key {path}/key.pem; root {path}; }}"
    );
    let _nginx = host_nginx(root.path(), &servers, tls).await;
    let sandbox = client_of(&[&format!("tcp:host:{plain}"), &format!("tcp:host:{tls}")]).await;
    let certificate = fs::read(root.path().join("cert.pem")).unwrap();
    sandbox
        .files()
        .write("/tmp/ca.pem", certificate)
        .await
        .unwrap();
    let curl = "curl -sS --max-time 300 -w '%{http_version} %{ssl_verify_result}'";

    for family in ["-4", "-6"] {
        let by_http = format!("{curl} {family} http://host.capsa.internal:{plain}/");
        assert_eq!(guest(&sandbox, &by_http).await, "the page\n1.1 0");
        for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let by_https = format!(
                "{curl} {family} {flag} --cacert /tmp/ca.pem https://host.capsa.internal:{tls}/"
            );
            let expected = format!("the page\n{version} 0");
            assert_eq!(guest(&sandbox, &by_https).await, expected);
        }
    }
    let unknown = format!("curl -sS --max-time 300 https://host.capsa.internal:{tls}/");
    let refused = run(&sandbox, script(&unknown)).await;
    assert_eq!(refused.status.code(), Some(60), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn nginx_in_the_guest_answers_fifty_connections_of_wrk_without_an_error() {
    let interface = Interface::user_nat().forward(Forward::tcp(0, 80));
    let sandbox = sandbox(interface, 512).await;
    let network = network_of(&sandbox).await;
    let bound = network.forwards().await.unwrap()[0].bound.unwrap();
    let config = nginx_config("/tmp/www", "server { listen 80; root /tmp/www; }");
    guest(
        &sandbox,
        "mkdir /tmp/www && echo hello > /tmp/www/index.html",
    )
    .await;
    sandbox
        .files()
        .write("/tmp/www/nginx.conf", config)
        .await
        .unwrap();
    guest(
        &sandbox,
        "nginx -e /tmp/www/start.log -c /tmp/www/nginx.conf",
    )
    .await;

    let said = host(format!(
        "wrk -t 2 -c 50 -d 10s --timeout 120s --latency http://{bound}/"
    ))
    .await;
    let logged = guest(&sandbox, "sort /tmp/www/status.log | uniq -c").await;

    println!("{said}nginx's answers by status:\n{logged}");
    assert!(!said.contains("Socket errors"), "{said}");
    assert!(!said.contains("Non-2xx"), "{said}");
    let words: Vec<&str> = logged.split_whitespace().collect();
    let [answers, "200"] = words[..] else {
        panic!("not all are 200: {logged}");
    };
    let (before, _) = said.split_once(" requests in ").unwrap();
    let requests: u64 = before.split_whitespace().last().unwrap().parse().unwrap();
    assert!(requests > 0 && answers.parse::<u64>().unwrap() >= requests);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn postgresql_in_the_guest_serves_psql_and_pgbench_on_the_host() {
    let interface = Interface::user_nat().forward(Forward::tcp(0, 5432));
    let sandbox = sandbox(interface, 1024).await;
    let network = network_of(&sandbox).await;
    let port = network.forwards().await.unwrap()[0].bound.unwrap().port();
    guest(&sandbox, "install -d -o postgres -m 700 /tmp/db").await;
    let start = format!(
        "set -e; {POSTGRESQL}/initdb --auth=trust --no-sync --pgdata=/tmp/db/data
        echo 'host all all 10.0.2.1/32 trust' >> /tmp/db/data/pg_hba.conf
        {POSTGRESQL}/pg_ctl --pgdata=/tmp/db/data --wait --timeout=1200 --log=/tmp/db/log \
            --options=\"-k /tmp/db -c listen_addresses='*'\" start || {{ cat /tmp/db/log; exit 1; }}"
    );
    succeeded(
        &start,
        run(
            &sandbox,
            script(&start).directory("/tmp/db").user("postgres"),
        )
        .await,
    );
    let of_host = format!("-h 127.0.0.1 -p {port} -U postgres");
    let psql = format!("psql {of_host} -X -v ON_ERROR_STOP=1 -Atq -d postgres");

    host(format!(
        "{psql} -c 'CREATE TABLE pairs (id int PRIMARY KEY, word text)'"
    ))
    .await;
    let rows = "for n in $(seq 1000); do echo \"INSERT INTO pairs VALUES ($n, md5('$n'));\"; done";
    host(format!("{rows} | {psql}")).await;
    let sum = "SELECT count(*), sum(id), count(*) FILTER (WHERE word = md5(id::text)) FROM pairs";
    let counted = host(format!("{psql} -c \"{sum}\"")).await;
    let pgbench = format!("{POSTGRESQL}/pgbench {of_host}");
    host(format!("{pgbench} -i -q postgres")).await;
    let load = host(format!("{pgbench} -c 4 -j 2 -T 5 postgres")).await;

    println!("{load}");
    assert_eq!(counted.trim(), "1000|500500|1000");
    assert!(number_after("transactions actually processed:", &load) > 0.0);
    assert!(load.contains("failed transactions: 0 "), "{load}");
    let history = host(format!("{psql} -c 'SELECT count(*) FROM pgbench_history'")).await;
    let processed = number_after("transactions actually processed:", &load);
    assert!(history.trim().parse::<f64>().unwrap() >= processed);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn iperf3_runs_by_tcp_and_udp_both_ways() {
    const MIB: u64 = 1 << 20;
    let port = free_port().await;
    let command = format!("iperf3 -s -B 127.0.0.1 -p {port}");
    let _server = Server::start(&command, port).await;
    let sandbox = client_of(&[&format!("host:{port}")]).await;

    for direction in ["", "-R"] {
        let end = iperf3(&sandbox, port, &format!("-n 64M {direction}")).await;
        let received = &end["sum_received"];
        println!(
            "tcp {direction}: {:.1} Mbit/s",
            received["bits_per_second"].as_f64().unwrap() / 1e6
        );
        // The receiver stops counting when the sender is done, with megabytes in between.
        assert!(received["bytes"].as_u64().unwrap() > 32 * MIB, "{end}");
    }
    for direction in ["", "-R"] {
        let arguments = format!("-u -b 2M -l 1200 -n 1M {direction}");
        let end = iperf3(&sandbox, port, &arguments).await;
        let sum = &end["sum"];
        let (packets, lost) = (&sum["packets"], &sum["lost_percent"]);
        println!("udp {direction}: {packets} packets, {lost} % lost");
        assert!(packets.as_u64().unwrap() * 1200 >= MIB * 9 / 10, "{end}");
        // A guest that its host gives too little time drops some itself: 4 % were seen under load.
        assert!(lost.as_f64().unwrap() < 10.0, "{end}");
    }
}

/// Runs iperf3 in the guest; its summary.
async fn iperf3(sandbox: &Sandbox, port: u16, arguments: &str) -> Value {
    let text = format!("iperf3 -J -c {HOST} -p {port} {arguments}");
    let mut report: Value = serde_json::from_str(&guest(sandbox, &text).await).unwrap();
    report["end"].take()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn download_of_two_gibibytes_arrives_whole() {
    let mib = std::env::var("CAPSA_SOAK_MIB").map_or(DOWNLOAD_MIB, |text| text.parse().unwrap());
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    write_numbers(&file, mib << 20);
    let port = free_port().await;
    let servers = format!(
        "server {{ listen 127.0.0.1:{port}; root {}; }}",
        root.path().display()
    );
    let _nginx = host_nginx(root.path(), &servers, port).await;
    let expected = host(format!("sha256sum < {}", file.display())).await;
    let sandbox = client_of(&[&format!("tcp:host:{port}")]).await;
    let started = Instant::now();

    let sum = guest(
        &sandbox,
        &format!("set -o pipefail; curl -fsS http://{HOST}:{port}/file | sha256sum"),
    )
    .await;

    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{mib} MiB in {seconds:.0} s ({:.1} MiB/s), hashed on the way",
        mib as f64 / seconds
    );
    assert_eq!(sum, expected);
    let counters = network_of(&sandbox).await.info().await.unwrap().counters;
    assert!(counters.bytes_to > mib << 20, "{counters:?}");
    assert_eq!(counters.malformed, 0, "{counters:?}");
}

/// Writes numbers of eight bytes of which no two are the same.
fn write_numbers(file: &Path, bytes: u64) {
    let mut writer = BufWriter::with_capacity(1 << 20, File::create(file).unwrap());
    for number in 0..bytes / 8 {
        let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        writer.write_all(&scattered.to_le_bytes()).unwrap();
    }
    writer.flush().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn thousand_flows_are_open_at_once_and_all_are_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let policy = reaching(&[&format!("tcp:host:{port}")]);
    let sandbox = sandbox(Interface::user_nat().policy(policy), 1024).await;
    let network = network_of(&sandbox).await;
    let started = Instant::now();
    // curl has at most 300 transfers at a time.
    let fetch = format!(
        "mkdir /tmp/flows && cd /tmp/flows || exit
        for part in 0 1 2 3; do
            curl -fsS --parallel --parallel-immediate --parallel-max 250 \
                \"http://{HOST}:{port}/$part-[1-250]\" -o \"$part-#1\" & curls+=($!)
        done
        for curl in ${{curls[@]}}; do wait $curl || exit; done
        for file in *; do read -r path < $file; [ $path = /$file ] || exit; count=$((count + 1)); done
        echo $count"
    );
    let serve = async {
        let mut held = Vec::new();
        while held.len() < FLOWS {
            let (mut client, _) = listener.accept().await.unwrap();
            let request = request(&mut client).await.unwrap();
            held.push((client, request));
        }
        let open = network.info().await.unwrap().flows.0;
        let all_open = started.elapsed();
        for (client, request) in &mut held {
            let path = request.split(' ').nth(1).unwrap();
            answer(client, &format!("{path}\n")).await;
        }
        (open, all_open)
    };

    let (count, (open, all_open)) = tokio::join!(guest(&sandbox, &fetch), serve);

    println!(
        "{open} flows open after {:.1} s, all answered after {:.1} s",
        all_open.as_secs_f64(),
        started.elapsed().as_secs_f64()
    );
    assert_eq!(open as usize, FLOWS);
    assert_eq!(count.trim(), FLOWS.to_string());
    let counters = network.info().await.unwrap().counters;
    assert_eq!(counters.refused_flows, 0, "{counters:?}");
}

/// Reads up to the end of a request's head.
async fn request(client: &mut TcpStream) -> std::io::Result<String> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(client.read_u8().await?);
    }
    Ok(String::from_utf8(request).unwrap())
}

async fn answer(client: &mut TcpStream, body: &str) {
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
    client.write_all((head + body).as_bytes()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn dig_in_the_guest_is_answered_by_udp_by_tcp_and_after_truncation() {
    let port = free_port().await;
    let log = tempfile::NamedTempFile::new().unwrap();
    let big: String = (0..120)
        .map(|number| format!(" --txt-record=big.example.com,{number}-{}", "x".repeat(40)))
        .collect();
    let command = format!(
        "dnsmasq -k -C /dev/null -R -h -u root --listen-address=127.0.0.1 --bind-interfaces --port={port} \
         --pid-file --log-queries --log-facility={} --local-ttl=3600 --host-record=www.example.com,1.2.3.4{big}",
        log.path().display()
    );
    let _server = Server::start(&command, port).await;
    let upstream = SocketAddr::from(([127, 0, 0, 1], port));
    let resolver = Resolver::Servers(vec![upstream]);
    let sandbox = sandbox(Interface::user_nat().resolver(resolver), 512).await;
    let dig = "dig +timeout=60 +tries=2";

    for flags in ["", "+tcp", "-6"] {
        let address = guest(&sandbox, &format!("{dig} {flags} +short www.example.com")).await;
        assert_eq!(address.trim(), "1.2.3.4", "{flags}");
    }
    let cut = guest(&sandbox, &format!("{dig} +ignore big.example.com TXT")).await;
    let whole = guest(&sandbox, &format!("{dig} big.example.com TXT")).await;
    let by_tcp = guest(&sandbox, &format!("{dig} +tcp big.example.com TXT")).await;
    // The network has it whole now, and cuts it itself.
    let cut_again = guest(&sandbox, &format!("{dig} +ignore big.example.com TXT")).await;
    let unknown = guest(&sandbox, &format!("{dig} nowhere.example.net")).await;

    for text in [&cut, &cut_again] {
        assert!(text.contains(" tc "), "{text}");
    }
    assert!(whole.contains("Truncated, retrying in TCP mode"), "{whole}");
    assert!(!by_tcp.contains("Truncated"), "{by_tcp}");
    for text in [&whole, &by_tcp] {
        assert!(text.contains("ANSWER: 120"), "{text}");
        assert_eq!(text.matches("x".repeat(40).as_str()).count(), 120, "{text}");
    }
    assert!(unknown.contains("status: REFUSED") || unknown.contains("status: NXDOMAIN"));
    let asked = fs::read_to_string(log.path()).unwrap();
    assert_eq!(asked.matches("query[A] www.example.com").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn ping_of_gateway_and_host_is_answered_in_both_families() {
    let sandbox = client_of(&["host"]).await;
    let network = network_of(&sandbox).await;
    let gateway = network.addresses().ipv6_gateway.unwrap();

    for target in [
        "-4 10.0.2.1",
        "-4 host.capsa.internal",
        &format!("-6 {gateway}"),
        "-6 host.capsa.internal",
    ] {
        let said = guest(&sandbox, &format!("ping -c 5 -i 0.2 -W 60 {target}")).await;

        println!("{said}");
        assert!(said.contains("5 received, 0% packet loss"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn server_with_ipv6_only_is_found_by_name() {
    let listener = TcpListener::bind("[::1]:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        request(&mut client).await.unwrap();
        answer(&mut client, "by IPv6").await;
    });
    let sandbox = client_of(&[&format!("tcp:host:{port}")]).await;
    let curl = "curl -sS --max-time 300";

    let by_ipv4 = format!("{curl} -4 http://host.capsa.internal:{port}/");
    let refused = run(&sandbox, script(&by_ipv4)).await;
    let body = guest(
        &sandbox,
        &format!("{curl} http://host.capsa.internal:{port}/"),
    )
    .await;

    assert_eq!(refused.status.code(), Some(7), "{refused:?}");
    assert_eq!(body, "by IPv6");
    server.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn reset_by_a_server_reaches_the_guest_and_one_by_the_guest_the_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let sandbox = client_of(&[&format!("tcp:host:{port}")]).await;
    let server = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        request(&mut client).await.unwrap();
        client.set_zero_linger().unwrap();
        drop(client);
        let (mut client, _) = listener.accept().await.unwrap();
        request(&mut client).await.unwrap();
        // More than is on the way: the guest goes with data unread, which is a reset.
        loop {
            if let Err(error) = client.write_all(&[0; 65536]).await {
                return error.kind();
            }
        }
    });

    let curl = format!("curl -sS --max-time 300 http://{HOST}:{port}/");
    let reset = run(&sandbox, script(&curl)).await;
    guest(
        &sandbox,
        &format!(
            "exec 3<>/dev/tcp/{HOST}/{port}; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; head -c 1000 <&3 | wc -c"
        ),
    )
    .await;
    let seen = tokio::time::timeout(LIMIT, server).await.unwrap().unwrap();

    let said = String::from_utf8_lossy(&reset.stderr);
    assert_eq!(reset.status.code(), Some(56), "{reset:?}");
    assert!(said.contains("reset by peer"), "{said}");
    assert_eq!(seen, std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn server_that_never_answers_is_a_time_out_in_the_guest_and_reached_once_it_answers() {
    // One that accepts and says nothing, and one whose queue is full, so that nothing connects.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(0).unwrap();
    let full_address = full.local_addr().unwrap();
    let full_port = full_address.port();
    let _queued = TcpStream::connect(full_address).await.unwrap();
    let services = [
        format!("tcp:host:{silent_port}"),
        format!("tcp:host:{full_port}"),
    ];
    let sandbox = client_of(&services.each_ref().map(String::as_str)).await;
    let served = tokio::spawn(async move {
        let (mut client, _) = silent.accept().await.unwrap();
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).await.map(|_| bytes)
    });
    let curl = "curl -sS --max-time 10 -w '%{time_connect}'";

    let unanswered = run(
        &sandbox,
        script(&format!("{curl} http://{HOST}:{silent_port}/")),
    )
    .await;
    let unconnected = run(
        &sandbox,
        script(&format!("{curl} http://{HOST}:{full_port}/")),
    )
    .await;
    let seen = tokio::time::timeout(LIMIT, served).await.unwrap().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut client, _) = full.accept().await.unwrap();
            // Neither the one of the queue nor the one that was given up asks for anything.
            tokio::spawn(async move {
                if request(&mut client).await.is_ok() {
                    answer(&mut client, "at last").await;
                }
            });
        }
    });
    let again = format!("curl -sS --max-time 300 http://{HOST}:{full_port}/");
    let answered = guest(&sandbox, &again).await;

    assert_eq!(unanswered.status.code(), Some(28), "{unanswered:?}");
    assert_ne!(unanswered.stdout, b"0.000000", "{unanswered:?}");
    assert_eq!(unconnected.status.code(), Some(28), "{unconnected:?}");
    assert_eq!(unconnected.stdout, b"0.000000", "{unconnected:?}");
    assert!(seen.unwrap().starts_with(b"GET / HTTP/1.1\r\n"));
    assert_eq!(answered, "at last");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes"]
async fn each_side_goes_on_sending_after_the_other_has_closed_its_half() {
    const BYTES: usize = 1_000_000;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let sandbox = client_of(&[&format!("tcp:host:{port}")]).await;
    let server = tokio::spawn(async move {
        let mut got = Vec::new();
        let (mut client, _) = listener.accept().await.unwrap();
        client.write_all(b"that is all").await.unwrap();
        client.shutdown().await.unwrap();
        client.read_to_end(&mut got).await.unwrap();
        let after_our_end = got.len();
        got.clear();
        let (mut client, _) = listener.accept().await.unwrap();
        client.read_to_end(&mut got).await.unwrap();
        client.write_all(&vec![7; BYTES]).await.unwrap();
        client.shutdown().await.unwrap();
        (after_our_end, got)
    });

    // `cat` ends with the server's half.
    let first = format!(
        "exec 3<>/dev/tcp/{HOST}/{port}; cat <&3; head -c {BYTES} /dev/zero >&3; exec 3>&-"
    );
    let first = guest(&sandbox, &first).await;
    let second = format!("echo request | nc -N {HOST} {port} | wc -c");
    let second = guest(&sandbox, &second).await;
    let (after_our_end, got) = tokio::time::timeout(LIMIT, server).await.unwrap().unwrap();

    assert_eq!(first, "that is all");
    assert_eq!(after_our_end, BYTES);
    assert_eq!(got, b"request\n");
    assert_eq!(second.trim(), BYTES.to_string());
}

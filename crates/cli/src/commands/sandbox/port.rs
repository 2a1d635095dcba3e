//! `capsa port`: the ports of this computer that lead to a sandbox.

use capsa::Sandbox;
use capsa::network::{Forward, ForwardInfo, Listen, VmNetwork};
use clap::{Args, ValueEnum};

use super::network_facts::ShownForward;
use crate::commands::run::network_flags::parse_publish;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

#[derive(Args)]
pub(crate) struct PortArguments {
    /// The sandbox
    name: String,
    /// What to do with the ports [default: list those that there are]
    #[arg(requires = "ports")]
    change: Option<Change>,
    /// The ports: [[ADDRESS:]PORT:]GUEST-PORT[/udp], as of `capsa run -p`
    #[arg(value_name = "PORTS", value_parser = parse_publish)]
    ports: Vec<Forward>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Change {
    /// Lead them to the sandbox; with port 0 a free one, which is printed
    Add,
    /// Close them; connections through them go on
    Rm,
}

pub(crate) async fn run(arguments: PortArguments) -> Result<ExitStatus, Failure> {
    let name = &arguments.name;
    let Some(network) = Sandbox::attach(name).await?.network().await? else {
        return Err(capsa::Error::invalid_setting(
            "sandbox",
            name,
            "it has no network",
            "start it with `capsa run --net nat` or with `-p`",
        )
        .into());
    };
    match arguments.change {
        None => print(&network.forwards().await?)?,
        Some(Change::Add) => {
            for port in arguments.ports {
                print(&[network.forward(port).await?])?;
            }
        }
        Some(Change::Rm) => {
            for port in arguments.ports {
                close(name, &network, &port).await?;
            }
        }
    }
    Ok(ExitStatus::Success)
}

fn print(forwards: &[ForwardInfo]) -> Result<(), Failure> {
    forwards
        .iter()
        .try_for_each(|info| output::to_stdout(&ShownForward::of(info).line()))
}

async fn close(name: &str, network: &VmNetwork, wanted: &Forward) -> Result<(), Failure> {
    let open = network.forwards().await?;
    match open.iter().find(|info| is_meant(info, wanted)) {
        Some(info) => Ok(network.remove_forward(info.id).await?),
        None => Err(capsa::Error::invalid_setting(
            "ports",
            format!("{}:{}", wanted.listen, wanted.guest_port),
            format!("they do not lead to {name}"),
            format!("`capsa port {name}` lists those that do"),
        )
        .into()),
    }
}

/// Whether a forward is the one that is written so: by the port that clients use, or as it was asked
/// for.
fn is_meant(info: &ForwardInfo, wanted: &Forward) -> bool {
    let bound = info.bound.map(Listen::Address);
    info.forward.protocol == wanted.protocol
        && info.forward.guest_port == wanted.guest_port
        && (bound.as_ref() == Some(&wanted.listen) || info.forward.listen == wanted.listen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use capsa::network::ForwardId;

    #[test]
    fn forward_is_meant_by_its_real_port_and_as_it_was_asked_for() {
        let info = ForwardInfo {
            id: ForwardId(1),
            guest: "web".parse().unwrap(),
            forward: Forward::tcp(0, 80),
            bound: Some("127.0.0.1:4711".parse().unwrap()),
        };
        for (text, meant) in [
            ("4711:80", true),
            ("0:80", true),
            ("4711:80/udp", false),
            ("4711:81", false),
            ("80", false),
        ] {
            let wanted = parse_publish(text).unwrap();
            assert_eq!(is_meant(&info, &wanted), meant, "{text}");
        }
    }
}

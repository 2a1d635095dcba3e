//! `capsa network create`: makes a network.

use capsa::network::{Cidr, Network};
use clap::Args;

use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::output;

#[derive(Args)]
pub(crate) struct CreateArguments {
    /// Its name, by which `capsa run --net` finds it
    name: String,
    /// Let no guest reach anything outside but the services of this computer that its --allow names
    #[arg(long)]
    no_outside: bool,
    /// Keep guests from one another
    #[arg(long)]
    no_peers: bool,
    /// Its IPv4 range, from /8 to /29 [default: 10.0.2.0/24]; `none` for none
    #[arg(long, value_name = "RANGE")]
    ipv4: Option<Range>,
    /// Its IPv6 range, a /64 [default: one made from the name]; `none` for none
    #[arg(long, value_name = "RANGE")]
    ipv6: Option<Range>,
    /// Its largest IP packet, 1280 to 65521 bytes [default: 1500]
    #[arg(long, value_name = "BYTES")]
    mtu: Option<u16>,
}

/// An address range, or none.
#[derive(Clone, Copy, Debug)]
struct Range(Option<Cidr>);

impl std::str::FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            text => text
                .parse()
                .map(|range| Self(Some(range)))
                .map_err(|error: capsa::network::CidrError| error.to_string()),
        }
    }
}

pub(crate) async fn run(arguments: CreateArguments) -> Result<ExitStatus, Failure> {
    let mut builder = Network::builder(&arguments.name).keep();
    if let Some(Range(range)) = arguments.ipv4 {
        builder = builder.ipv4(range);
    }
    if let Some(Range(range)) = arguments.ipv6 {
        builder = builder.ipv6(range);
    }
    if let Some(mtu) = arguments.mtu {
        builder = builder.mtu(mtu);
    }
    if arguments.no_outside {
        builder = builder.without_outside();
    }
    if arguments.no_peers {
        builder = builder.without_peers();
    }
    let network = builder.create().await?;
    for warning in network.warnings() {
        output::to_stderr(&format!("warning: {warning}"));
    }
    output::to_stdout(network.name())?;
    Ok(ExitStatus::Success)
}

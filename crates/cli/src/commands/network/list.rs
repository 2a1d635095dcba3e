//! `capsa network ls`: the networks of this user.

use capsa::network::{Network, NetworkInfo, NetworkState};
use serde::Serialize;

use crate::arguments::JsonArguments;
use crate::exit_status::ExitStatus;
use crate::failure::Failure;
use crate::{output, table};

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    info: NetworkInfo,
    /// The names of its guests; `None` where it does not run.
    guests: Option<Vec<String>>,
}

pub(crate) async fn run(arguments: JsonArguments) -> Result<ExitStatus, Failure> {
    let mut listed = Vec::new();
    for info in Network::list().await? {
        let guests = guests(&info).await;
        listed.push(Listed { info, guests });
    }
    if arguments.json {
        output::json(&listed)?;
    } else {
        output::to_stdout(&in_a_table(&listed))?;
    }
    Ok(ExitStatus::Success)
}

/// One that ends meanwhile must not keep the others from being listed.
async fn guests(info: &NetworkInfo) -> Option<Vec<String>> {
    if info.state != NetworkState::Running {
        return None;
    }
    let guests = Network::attach(&info.name)
        .await
        .ok()?
        .guests()
        .await
        .ok()?;
    let names = guests.iter().map(|guest| guest.counters.guest.to_string());
    Some(names.collect())
}

fn in_a_table(listed: &[Listed]) -> String {
    let head = ["NAME", "STATE", "AGE", "GUESTS", "IPV4", "IPV6", "REACHES"];
    let range = |range: Option<capsa::network::Cidr>| {
        range.map_or_else(|| "-".to_owned(), |range| range.to_string())
    };
    table::of(
        head,
        listed.iter().map(|Listed { info, guests }| {
            [
                info.name.clone(),
                state(info.state).to_owned(),
                table::age(info.age()),
                guests
                    .as_ref()
                    .map_or_else(|| "-".to_owned(), |guests| guests.len().to_string()),
                range(info.ipv4),
                range(info.ipv6),
                match (info.outside, info.peers) {
                    (true, true) => "outside, guests",
                    (true, false) => "outside",
                    (false, true) => "guests",
                    (false, false) => "nothing",
                }
                .to_owned(),
            ]
        }),
    )
}

fn state(state: NetworkState) -> &'static str {
    match state {
        NetworkState::Starting => "starting",
        NetworkState::Running => "running",
        NetworkState::Crashed => "crashed",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_nothing_is_its_head() {
        assert!(in_a_table(&[]).starts_with("NAME"));
    }
}

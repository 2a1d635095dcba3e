//! A stand-in for `capsa-vzd`: the real server, protocol and process with an engine of the tests.

#[cfg(unix)]
mod engine;

fn main() -> std::process::ExitCode {
    #[cfg(unix)]
    {
        capsa_apple_vzd::run(engine::StandInEngine)
    }
    #[cfg(not(unix))]
    {
        std::process::ExitCode::FAILURE
    }
}

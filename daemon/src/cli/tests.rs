//! The command line as a whole.

use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(line.split_whitespace())
}

#[test]
fn the_commands_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_documented_command_is_understood() {
    for line in [
        "larder serve --config a.toml --data-dir d --listen 127.0.0.1:1 --peer-listen 127.0.0.1:2 --archive s3://bucket/prefix",
        "larder token",
        "larder token --expires 1h --data-dir d",
        "larder join larder1-abc --data-dir d",
        "larder peers",
        "larder peers --json",
        "larder peers --data-dir d list --json",
        "larder peers list --json --data-dir d",
        "larder peers remove 0123-4567",
        "larder status --json",
        "larder check-config --config a.toml",
        "larder repo list --json",
        "larder tag list team/app --json",
        "larder tag delete team/app:1.0",
        "larder archive status --json",
        "larder archive flush --json",
        "larder archive list --json",
        "larder archive cost --json",
        "larder restore s3://bucket/prefix",
        "larder export team/app:v1 images.tar",
        "larder export team/app team/**:v* images.tar --data-dir d",
        "larder import images.tar --json",
        "larder unpack images.tar",
        "larder unpack images.tar folder --json",
        "larder setup docker --write --address 10.0.0.7:5000",
        "larder setup containerd",
        "larder setup podman",
        "larder completions bash",
        "larder man",
        "larder man there",
        "larder --data-dir d status",
    ] {
        assert!(parse(line).is_ok(), "{line}: {}", parse(line).expect_err("just seen"));
    }
}

#[test]
fn what_is_no_command_is_a_usage_error() {
    for line in [
        "larder",
        "larder frobnicate",
        "larder serve --port 5",
        "larder join",
        "larder tag delete",
        "larder archive",
        "larder export images.tar",
        "larder import",
        "larder token --expires soon",
        "larder setup",
        "larder completions tcl",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}");
    }
}

#[test]
fn a_closed_pipe_is_no_failure_and_a_wrong_configuration_is_usage() {
    let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
    assert!(is_closed_pipe(&anyhow::Error::from(closed()).context("print the list")));
    assert!(!is_closed_pipe(&anyhow::anyhow!("broken pipe")));
    let wrong = config::Config::load(Some("/no/such/file".as_ref()), &config::Flags::default(), []).expect_err("no file");
    assert!(is_usage(&anyhow::Error::from(wrong).context("start")));
    assert!(!is_usage(&anyhow::Error::from(closed())));
}

#[test]
fn messages_are_one_line_without_control_characters() {
    assert_eq!(one_line("a\n  b\u{1b}[31m c"), "a b [31m c");
}

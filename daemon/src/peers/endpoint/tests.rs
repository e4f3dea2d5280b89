//! What a handshake does not look at.

use super::*;

#[test]
fn f13_f14_no_date_matters_to_a_handshake() {
    let node = NodeId([7; 32]);
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let verifier = Verifier { gate: Arc::new(move |key| (*key == node).then_some(node)), algorithms };
    let shown = |node| CertificateDer::from(spki_of(&node));
    let name = ServerName::try_from("larder").expect("a name");
    // 1970, and some hundred years from now: raw public keys have no dates, and nothing here looks at a clock.
    for seconds in [0, 1 << 33] {
        let now = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        assert!(verifier.verify_server_cert(&shown(node), &[], &name, &[], now).is_ok());
        assert!(verifier.verify_client_cert(&shown(node), &[], now).is_ok());
        assert!(verifier.verify_client_cert(&shown(NodeId([8; 32])), &[], now).is_err());
    }
}

package cloudtrail

import "crypto/tls"

// TLSDetails is what a record says of the connection that a call came over.
type TLSDetails struct {
	Version     string // TLSv1.3
	CipherSuite string // TLS_AES_128_GCM_SHA256
	KeyExchange string // X25519MLKEM768; "": left out
	Host        []byte // clientProvidedHostHeader, up to 256 bytes; nil: left out
}

// SetState fills all but Host.
func (d *TLSDetails) SetState(s *tls.ConnectionState) {
	switch s.Version {
	case tls.VersionTLS13:
		d.Version = "TLSv1.3"
	case tls.VersionTLS12:
		d.Version = "TLSv1.2"
	default:
		d.Version = tls.VersionName(s.Version)
	}
	d.CipherSuite = tls.CipherSuiteName(s.CipherSuite)
	switch s.CurveID {
	case 0:
		d.KeyExchange = ""
	case tls.X25519:
		d.KeyExchange = "x25519"
	case tls.CurveP256:
		d.KeyExchange = "secp256r1"
	case tls.CurveP384:
		d.KeyExchange = "secp384r1"
	case tls.CurveP521:
		d.KeyExchange = "secp521r1"
	default:
		d.KeyExchange = s.CurveID.String()
	}
}

func (d *TLSDetails) append(dst []byte) []byte {
	dst = append(dst, `,"tlsDetails":{"tlsVersion":`...)
	dst = appendText(dst, d.Version, nameMax)
	dst = append(dst, `,"cipherSuite":`...)
	dst = appendText(dst, d.CipherSuite, nameMax)
	if d.Host != nil {
		dst = append(dst, `,"clientProvidedHostHeader":`...)
		dst = appendString(dst, d.Host, hostMax)
	}
	if d.KeyExchange != "" {
		dst = append(dst, `,"keyExchange":`...)
		dst = appendText(dst, d.KeyExchange, nameMax)
	}
	return append(dst, '}')
}

package pubkey

func (k *Key) verifyMu(mu, signature []byte) bool { return false }

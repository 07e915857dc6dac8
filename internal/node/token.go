package node

import (
	"errors"
	"path/filepath"

	"github.com/keyplane/keyplane/hsm"
	"github.com/keyplane/keyplane/hsm/softtoken"
)

// openTokens opens the tokens of the configuration: PKCS#11 modules, or the soft token. On an error none stays open.
func openTokens(c *Config) ([]hsm.Token, error) {
	if len(c.HSM) == 0 {
		t, err := softtoken.Open(softtoken.Config{Dir: filepath.Join(c.DataDir, "softtoken"), PINFile: c.SoftTokenPINFile, Create: true})
		if err != nil {
			return nil, err
		}
		return []hsm.Token{t}, nil
	}
	var tokens []hsm.Token
	for _, uri := range c.HSM {
		t, err := openPKCS11(uri)
		if err != nil {
			return nil, errors.Join(err, closeTokens(tokens))
		}
		tokens = append(tokens, t)
	}
	return tokens, nil
}

func closeTokens(tokens []hsm.Token) error {
	var errs []error
	for _, t := range tokens {
		errs = append(errs, t.Close())
	}
	return errors.Join(errs...)
}

package p11

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/keyplane/keyplane/internal/pkcs11uri"
)

// config is what a token URI says.
type config struct {
	token, serial, manufacturer, model string // "" matches any
	modulePath, initArgs, pinFile      string
}

func parseConfig(uri string) (config, error) {
	u, err := pkcs11uri.Parse(uri)
	if err != nil {
		return config{}, err
	}
	for _, a := range u.Path {
		switch a.Name {
		case "token", "serial", "manufacturer", "model":
		case "slot-id", "slot-description", "slot-manufacturer":
			return config{}, fmt.Errorf("p11: %s is not accepted: slots change their place, tokens are chosen by token and serial", a.Name)
		default:
			return config{}, fmt.Errorf("p11: %s is not accepted: the URI names a token", a.Name)
		}
	}
	for _, a := range u.Query {
		switch a.Name {
		case "module-path", "pin-source", "x-init-args":
		case "pin-value":
			return config{}, errors.New("p11: pin-value is not accepted: command lines and configuration are read by others; use pin-source=file:/path")
		default:
			return config{}, fmt.Errorf("p11: %s is not accepted", a.Name)
		}
	}
	c := config{
		token:        pkcs11uri.Get(u.Path, "token"),
		serial:       pkcs11uri.Get(u.Path, "serial"),
		manufacturer: pkcs11uri.Get(u.Path, "manufacturer"),
		model:        pkcs11uri.Get(u.Path, "model"),
		modulePath:   pkcs11uri.Get(u.Query, "module-path"),
		initArgs:     pkcs11uri.Get(u.Query, "x-init-args"),
	}
	if c.token == "" && c.serial == "" {
		return config{}, errors.New("p11: the URI names no token (token=…, serial=…)")
	}
	if c.modulePath == "" {
		return config{}, errors.New("p11: the URI names no module (module-path=/…)")
	}
	if strings.IndexByte(c.modulePath+c.initArgs, 0) >= 0 {
		return config{}, errors.New("p11: zero byte in module-path or x-init-args")
	}
	if pkcs11uri.Has(u.Query, "pin-source") {
		c.pinFile = strings.TrimPrefix(pkcs11uri.Get(u.Query, "pin-source"), "file:")
		if strings.HasPrefix(c.pinFile, "///") { // file:///path
			c.pinFile = c.pinFile[2:]
		}
		if !filepath.IsAbs(c.pinFile) || strings.HasPrefix(c.pinFile, "//") {
			return config{}, errors.New("p11: pin-source must be file:/absolute/path; commands and other schemes are not run")
		}
	}
	return c, nil
}

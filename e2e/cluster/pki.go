package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// writePKI writes what the API server, the controller manager and the kubelets prove themselves by: a CA, the API
// server's serving certificate, its client certificate for the kubelets, and the service-account key.
func writePKI(args []string) error {
	flags := flag.NewFlagSet("pki", flag.ContinueOnError)
	dir := flags.String("dir", "", "folder to write to")
	addresses := flags.String("addresses", "127.0.0.1", "IP addresses the API server is reached at, comma separated")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *dir == "" {
		return fmt.Errorf("--dir is needed")
	}
	var ips []net.IP
	for _, address := range strings.Split(*addresses, ",") {
		ip := net.ParseIP(address)
		if ip == nil {
			return fmt.Errorf("--addresses: %q is no IP address", address)
		}
		ips = append(ips, ip)
	}

	caKey, err := writeKey(filepath.Join(*dir, "ca.key"))
	if err != nil {
		return err
	}
	ca := template(1, pkix.Name{CommonName: "forebay-e2e"})
	ca.IsCA = true
	ca.BasicConstraintsValid = true
	ca.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	if err := writeCertificate(filepath.Join(*dir, "ca.crt"), ca, ca, caKey.Public(), caKey); err != nil {
		return err
	}

	server := template(2, pkix.Name{CommonName: "kube-apiserver"})
	server.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	server.IPAddresses = ips
	server.DNSNames = []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}

	kubeletClient := template(3, pkix.Name{CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}})
	kubeletClient.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}

	for name, certificate := range map[string]*x509.Certificate{"apiserver": server, "kubelet-client": kubeletClient} {
		key, err := writeKey(filepath.Join(*dir, name+".key"))
		if err != nil {
			return err
		}
		if err := writeCertificate(filepath.Join(*dir, name+".crt"), certificate, ca, key.Public(), caKey); err != nil {
			return err
		}
	}
	_, err = writeKey(filepath.Join(*dir, "service-account.key"))
	return err
}

func template(serial int64, subject pkix.Name) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      subject,
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
}

func writeKey(path string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, writePEM(path, "EC PRIVATE KEY", der, 0o600)
}

func writeCertificate(path string, certificate, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) error {
	der, err := x509.CreateCertificate(rand.Reader, certificate, parent, public, signer)
	if err != nil {
		return fmt.Errorf("signing %s: %w", path, err)
	}
	return writePEM(path, "CERTIFICATE", der, 0o644)
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode)
}
